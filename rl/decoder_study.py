"""`python -m rl.decoder_study`: what a bfloat16 decoder and fewer scoring points change in the rewards.

Rigs are sampled from the policy on the largest of the given meshes, each subdivided until it has more
vertices than the reference scores. All variants are compared with float32 at the reference's points and in
the same poses; two other pose seeds, or two random subsets of points, show what the run's own randomness
changes. Docs: docs/decoder_study.md.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from data.sets.dataset import MeshSample
from data.welding import weld_surface
from policy.bundle import RigPolicy
from rewards.score import REWARD_NAMES, RewardSettings, ScoringMesh
from rewards.scoring_mesh import subsample_edges
from rewards.skin_decoder import DecoderDtype, SkinDecoder
from rewards.worker import RewardMesh, RolloutRig, prepare, score_rollouts
from rl.engine.choose import make_sampler
from rl.mesh_bank import MeshBank
from rl.meshes import load_meshes, reward_meshes
from rl.policy_setup import load_policy
from rl.recipe import Recipe, load_recipe, reward_settings
from rl.rollout import row_seeds, sample_for_meshes
from rl.scoring import read_rollout

FEWER_POINTS = (8192, 4096, 2048, 1024)
TOTAL_WEIGHTS = (5.0, 1.0, 1.0, 1.0)  # of REWARD_NAMES, as in the paper


@dataclass(frozen=True)
class Variant:
    """One way to score a group."""

    name: str
    dtype: DecoderDtype = "float32"
    points: int | None = None  # None: the reference's
    subset_seed: int = 0
    pose_seed: int = 0


@dataclass(frozen=True)
class Change:
    """Rewards of a variant against those of another; see `change`."""

    mean_absolute: NDArray[np.float64]
    mean: NDArray[np.float64]
    correlation: float
    flipped: float


REFERENCE = Variant("float32")


def comparisons(reference_points: int) -> list[tuple[str, Variant, Variant]]:
    """Label, variant and what it is compared with, of each row of the table."""
    low = replace(REFERENCE, dtype="bfloat16")
    rows = [
        ("**spread:** float32, other poses", replace(REFERENCE, pose_seed=1), REFERENCE),
        ("bfloat16", low, REFERENCE),
    ]
    for count in (count for count in FEWER_POINTS if count < reference_points):
        fewer = replace(REFERENCE, points=count)
        rows.append((f"float32, {count:,} points", fewer, REFERENCE))
        if count == 4096:
            rows.append((f"bfloat16, {count:,} points", replace(low, points=count), REFERENCE))
            other = replace(fewer, subset_seed=1)
            rows.append((f"**spread:** float32, {count:,} other points", other, fewer))
    return rows


def change(new: Sequence[NDArray[np.float64]], old: Sequence[NDArray[np.float64]]) -> Change:
    """Compare rewards, one (rollouts, 4) array per group, in the order of REWARD_NAMES.

    Returns:
        mean absolute and mean change of each reward and of the total, (5,); the correlation of totals after
        each group's mean is subtracted, which is what advantages keep; and the share of the pairs of a
        group's rollouts whose totals change their order.
    """
    totals = [[group @ np.array(TOTAL_WEIGHTS) for group in side] for side in (new, old)]
    columns = [
        np.column_stack([np.concatenate(side), np.concatenate(total)])
        for side, total in zip((new, old), totals, strict=True)
    ]
    difference = columns[0] - columns[1]
    mine, others = (np.concatenate([total - total.mean() for total in side]) for side in totals)
    flips = [
        (a[i] - a[j]) * (b[i] - b[j]) < 0
        for a, b in zip(*totals, strict=True)
        for i in range(len(a))
        for j in range(i)
    ]
    return Change(
        np.abs(difference).mean(axis=0),
        difference.mean(axis=0),
        float(np.corrcoef(mine, others)[0, 1]),
        float(np.mean(flips)),
    )


def subdivided(sample: MeshSample, above: int) -> MeshSample:
    """The mesh with every triangle cut into four, repeatedly, until it has more than `above` vertices.

    The surface stays the same, and so do the points that condition the policy and the decoder.
    """
    surface = weld_surface(sample.mesh.vertices, sample.mesh.faces)
    points, faces = surface.points, surface.faces
    while len(points) <= above:
        sides = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]], axis=2)
        edges, side = np.unique(sides.reshape(-1, 2), axis=0, return_inverse=True)
        a, b, c = faces.T
        ab, bc, ca = side.reshape(-1, 3).T + len(points)
        points = np.concatenate([points, points[edges].mean(axis=1, dtype=points.dtype)])
        faces = np.concatenate(
            [np.column_stack(corners) for corners in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))]
        )
    return replace(sample, mesh=replace(sample.mesh, vertices=points, faces=faces))


def largest(samples: Sequence[MeshSample], count: int) -> list[MeshSample]:
    """The `count` samples with the most vertices."""
    return sorted(samples, key=lambda sample: -len(sample.mesh.vertices))[:count]


def sample_groups(
    policy: RigPolicy, samples: Sequence[MeshSample], recipe: Recipe, rollouts: int
) -> list[list[RolloutRig]]:
    """Complete rigs sampled from the policy at temperature 1, one list per mesh."""
    bank = MeshBank(samples, policy.vocabulary, recipe.data.class_name)
    rows = [mesh for mesh in range(len(samples)) for _ in range(rollouts)]
    seeds = row_seeds(len(rows), 0)
    sampler = make_sampler(policy.model, recipe)
    ids, _ = sample_for_meshes(sampler, policy.model, bank, rows, recipe, seeds, 1.0, len(rows)).rows()
    groups: list[list[RolloutRig]] = [[] for _ in samples]
    for mesh, completion in zip(rows, ids, strict=True):
        rig = read_rollout(completion, bank.class_id, policy.vocabulary)
        if rig is not None:
            groups[mesh].append(rig)
    return groups


class GroupScorer:
    """Scores a group in any variant; each dtype decodes once, at the reference's points."""

    def __init__(self, mesh: RewardMesh, rigs: list[RolloutRig], settings: RewardSettings) -> None:
        ready = prepare(mesh, settings)
        if isinstance(ready, str):
            raise ValueError(ready)
        self.mesh, self.ready, self.rigs, self.settings = mesh, ready, rigs, settings
        self._weights: dict[str, list[NDArray[np.float32]]] = {}

    def decode(self, decoder: SkinDecoder, dtype: DecoderDtype) -> None:
        """Decode the group; required once before variants of this dtype."""
        codes = [rig.codes for rig in self.rigs]
        self._weights[dtype] = decoder.decode(self.mesh, self.ready.vertices, self.ready.normals, codes)

    def rewards(self, variant: Variant) -> NDArray[np.float64]:
        """(rollouts, 4) rewards, in the order of REWARD_NAMES."""
        scoring, weights = self.ready, self._weights[variant.dtype]
        if variant.points is not None:
            kept, edges = subsample_edges(
                scoring.edges, len(scoring.vertices), variant.points, variant.subset_seed
            )
            scoring = _on_points(scoring, kept, edges)
            weights = [own[kept] for own in weights]
        scores = score_rollouts(scoring, self.rigs, weights, variant.pose_seed, self.settings)
        return np.array([[(score.rewards or {})[name] for name in REWARD_NAMES] for score in scores])


def _on_points(mesh: ScoringMesh, kept: NDArray[np.int64], edges: NDArray[np.int64]) -> ScoringMesh:
    return replace(
        mesh,
        vertices=mesh.vertices[kept],
        normals=mesh.normals[kept],
        source=mesh.source[kept],
        edges=edges,
    )


def table(rows: Sequence[tuple[str, Change]], spread: NDArray[np.float64]) -> str:
    """Markdown table; `spread` (5,) is the standard deviation within groups, in the last row."""
    names = [*REWARD_NAMES, "total"]
    lines = [
        "| | " + " | ".join(names) + " | correlation of centred totals | pairs that change order |",
        "|---" * (len(names) + 3) + "|",
    ]
    for label, found in rows:
        cells = [
            f"{size:.1e} ({mean:+.1e})" if size else "0"
            for size, mean in zip(found.mean_absolute, found.mean, strict=True)
        ]
        lines.append(
            f"| {label} | " + " | ".join(cells) + f" | {found.correlation:.4f} | {found.flipped:.1%} |"
        )
    cells = [f"{value:.1e}" for value in spread]
    lines.append("| standard deviation within a group | " + " | ".join(cells) + " | | |")
    return "\n".join(lines)


def run(recipe: Recipe, meshes: int, rollouts: int) -> str:
    """The study's table for the meshes of `data.eval_meshes`."""
    settings = reward_settings(recipe)
    policy = load_policy(recipe)
    found = load_meshes(recipe, training=False)
    samples = [subdivided(sample, settings.max_scoring_vertices) for sample in largest(found.samples, meshes)]
    groups = sample_groups(policy, samples, recipe, rollouts)
    dtypes: tuple[DecoderDtype, ...] = ("float32", "bfloat16")
    decoders = {dtype: SkinDecoder(policy.skin_vae, "cpu", 1, dtype) for dtype in dtypes}
    rows = comparisons(settings.max_scoring_vertices)
    variants = list(dict.fromkeys(variant for _, *pair in rows for variant in pair))
    rewards: dict[Variant, list[NDArray[np.float64]]] = {variant: [] for variant in variants}
    seconds = dict.fromkeys(dtypes, 0.0)
    bones = 0
    for mesh, rigs in zip(reward_meshes(samples), groups, strict=True):
        scorer = GroupScorer(mesh, rigs, settings)
        bones += sum(len(rig.joints) for rig in rigs)
        for dtype in dtypes:
            start = time.perf_counter()
            scorer.decode(decoders[dtype], dtype)
            seconds[dtype] += time.perf_counter() - start
        for variant in variants:
            rewards[variant].append(scorer.rewards(variant))
        print(f"{mesh.name}: {len(rigs)} rigs, {len(scorer.ready.vertices):,} points", flush=True)
    changes = [(label, change(rewards[new], rewards[old])) for label, new, old in rows]
    reference = rewards[REFERENCE]
    columns = [np.column_stack([group, group @ np.array(TOTAL_WEIGHTS)]) for group in reference]
    spread = np.mean([group.std(axis=0) for group in columns if len(group)], axis=0)
    return "\n".join(
        [
            f"{len(groups)} meshes, {sum(map(len, groups))} rigs with {bones} bones; decoding took "
            + " and ".join(f"{seconds[dtype]:.0f} s in {dtype}" for dtype in dtypes)
            + " on one CPU thread.",
            "",
            table(changes, spread),
        ]
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("recipe", help="recipe; its data.eval_meshes and policy.path are used")
    parser.add_argument("overrides", nargs="*", help="such as 'data.eval_meshes=rigs/*.glb'")
    parser.add_argument("--meshes", type=int, default=24, help="number of meshes, the largest first")
    parser.add_argument("--rollouts", type=int, default=4, help="rigs sampled per mesh")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    print(run(load_recipe(options.recipe, options.overrides), options.meshes, options.rollouts))


if __name__ == "__main__":
    main()
