"""`python -m rewards.zoo RIGGED.glb …`: compares reward-hacking rigs with the artist's, as a Markdown table.

No rig of this zoo is of any use to an animator. One that beats the artist's shows how the rewards can be
hacked.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.gltf.skinned import read_skinned_glb
from data.mesh import MeshError
from rewards.errors import RewardError
from rewards.guards import GUARD_NAMES
from rewards.score import RewardSettings, RigScore, ScoringMesh, prepare_scoring_mesh, score_rig
from rewards.settings import REWARD_NAMES
from rewards.smoothness import deformation_smoothness

PAPER_WEIGHTS = dict(zip(REWARD_NAMES, (5.0, 1.0, 1.0, 1.0), strict=True))
# The weights that docs/rewards.md recommends against a policy that hacks the paper's sum.
GUARDED_WEIGHTS = PAPER_WEIGHTS | {
    "bone_influence": 2.0,
    "joint_count_prior": 2.0,
    "volume_preservation": 1.0,
    "weight_locality": 2.0,
}
# Not in a sum: R_mo in as many poses, but of up to 90 degrees.
WIDE = "smoothness at 90°"


@dataclass(frozen=True, eq=False)
class ZooRig:
    """joints (J, 3) float64, mesh frame; parents (J,) int64; weights (S, J) float64 at scoring vertices."""

    joints: NDArray[np.float64]
    parents: NDArray[np.int64]
    weights: NDArray[np.float64]


def cheats(mesh: ScoringMesh, artist: ZooRig) -> dict[str, ZooRig]:
    """The degenerate rigs of one mesh, by name; most change one thing about the artist's rig."""
    joints, parents = artist.joints, artist.parents
    count, vertices = len(joints), mesh.vertices.astype(np.float64)
    centres = mesh.grid.centres()
    middle = centres[np.linalg.norm(centres - centres.mean(axis=0), axis=1).argmin()]
    everywhere, tree = _spread(centres, 400)
    spread, spread_tree = _spread(centres, count)
    surface, surface_tree = _spread(vertices, min(count, len(vertices)))
    children = np.flatnonzero(parents >= 0)
    doubled = np.concatenate([parents, np.arange(count)])
    tiny = middle + 0.01 * (joints - joints.mean(axis=0))
    ends = centres[[centres[:, 1].argmin(), centres[:, 1].argmax()]]
    root = _on_root(len(vertices), count)
    return {
        "all weight on the root": replace(artist, weights=root),
        "one-hot weights, nearest bone": replace(artist, weights=_one_hot(vertices, joints)),
        "uniform weights": replace(artist, weights=np.full((len(vertices), count), 1 / count)),
        "no weights": replace(artist, weights=np.zeros((len(vertices), count))),
        "collapsed bones": replace(artist, joints=np.tile(middle, (count, 1))),
        "tiny bones": replace(artist, joints=tiny),
        "duplicated joints": ZooRig(
            np.vstack([joints, joints]), doubled, np.hstack([artist.weights, 0 * artist.weights])
        ),
        "one bone": ZooRig(ends, np.array([-1, 0]), _on_root(len(vertices), 2)),
        "one joint": ZooRig(middle[None], np.array([-1]), np.ones((len(vertices), 1))),
        "joints only on the surface": ZooRig(surface, surface_tree, _one_hot(vertices, surface)),
        "joints everywhere (400), one-hot": ZooRig(everywhere, tree, _one_hot(vertices, everywhere)),
        "joints everywhere (400), on the root": ZooRig(everywhere, tree, _on_root(len(vertices), 400)),
        "as many joints spread, on the root": ZooRig(spread, spread_tree, _on_root(len(vertices), count)),
        "leaf bones only": replace(
            artist, weights=_one_hot(vertices, joints, np.setdiff1d(children, parents))
        ),
        "blurred weights": replace(artist, weights=_blurred(artist.weights, mesh.edges, 50)),
        "a leak of 0.09 from the farthest bone": replace(
            artist, weights=artist.weights + 0.09 * _one_hot(-vertices, joints)
        ),
    }


def _on_root(vertices: int, joints: int) -> NDArray[np.float64]:
    weights = np.zeros((vertices, joints))
    weights[:, 0] = 1
    return weights


def _one_hot(
    vertices: NDArray[np.float64], joints: NDArray[np.float64], allowed: NDArray[np.int64] | None = None
) -> NDArray[np.float64]:
    """All of each vertex's weight on its nearest joint, of those allowed."""
    choice = np.arange(len(joints)) if allowed is None else allowed
    distance = np.stack([np.linalg.norm(vertices - joints[j], axis=1) for j in choice], axis=1)
    weights = np.zeros((len(vertices), len(joints)))
    weights[np.arange(len(vertices)), choice[distance.argmin(axis=1)]] = 1
    return weights


def _blurred(weights: NDArray[np.float64], edges: NDArray[np.int64], times: int) -> NDArray[np.float64]:
    """Weights, each time replaced by the mean of a vertex and its neighbours."""
    first, second = np.concatenate([edges, edges[:, ::-1], np.tile(np.arange(len(weights)), (2, 1)).T]).T
    degree = np.bincount(first, minlength=len(weights))[:, None]
    for _ in range(times):
        total = np.zeros_like(weights)
        np.add.at(total, first, weights[second])
        weights = total / degree
    return weights


def _spread(points: NDArray[np.float64], count: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Farthest-point sample of `count` points, and a tree joining each to the nearest one drawn before it."""
    chosen = np.zeros(count, dtype=np.int64)
    parents = np.full(count, -1, dtype=np.int64)
    owner = np.zeros(len(points), dtype=np.int64)
    chosen[0] = np.linalg.norm(points - points.mean(axis=0), axis=1).argmin()
    distance = np.linalg.norm(points - points[chosen[0]], axis=1)
    for i in range(1, count):
        chosen[i] = distance.argmax()
        parents[i] = owner[chosen[i]]
        to_new = np.linalg.norm(points - points[chosen[i]], axis=1)
        owner[to_new < distance] = i
        distance = np.minimum(distance, to_new)
    return points[chosen], parents


def score_zoo(
    mesh: ScoringMesh, artist: ZooRig, settings: RewardSettings, seed: int = 0
) -> dict[str, RigScore]:
    """Scores by name, "artist's rig" first, with guards and WIDE among them, all in the same poses."""
    guarded = replace(settings, guards=GUARD_NAMES)
    rigs = {"artist's rig": artist} | cheats(mesh, artist)
    most = max(len(rig.joints) for rig in rigs.values())
    rotations = guarded.rotations(most, seed)
    wide = replace(settings, max_angle_deg=90.0).rotations(most, seed)
    scores = {}
    for name, rig in rigs.items():
        parts = rig.joints, rig.parents, rig.weights
        score = score_rig(mesh, *parts, rotations, guarded)
        smoothness = deformation_smoothness(
            mesh.vertices, mesh.edges, *parts, wide[:, : len(rig.joints)], settings.smoothness_scale
        )
        scores[name] = replace(score, guards=score.guards | {WIDE: smoothness})
    return scores


def total(score: RigScore, weights: Mapping[str, float]) -> float:
    """The weighted sum of a score's rewards."""
    return sum(weight * score.rewards[name] for name, weight in weights.items())


def read_artist(path: Path, settings: RewardSettings) -> tuple[ScoringMesh, ZooRig]:
    """A rigged GLB as scoring mesh and rig; MeshError for a file without a rig."""
    mesh, rig = read_skinned_glb(path)
    scoring = prepare_scoring_mesh(mesh.vertices, mesh.faces, settings, name=mesh.name)
    return scoring, ZooRig(
        rig.joints.astype(np.float64), rig.parents, rig.weights[scoring.source].astype(np.float64)
    )


def table(zoo: Mapping[str, Mapping[str, RigScore]]) -> str:
    """Markdown table: means over assets (each: rig name to score), and how many artists each rig beats."""
    assets = list(zoo.values())
    columns = [*REWARD_NAMES, WIDE, *GUARD_NAMES]
    lines = [
        "| rig | joints | " + " | ".join(columns) + " | paper's sum | beats | guarded sum | beats |",
        "|---" * (len(columns) + 6) + "|",
    ]
    for name in assets[0]:
        scores: list[RigScore] = [asset[name] for asset in assets]
        cells = [f"{np.mean([s.diagnostics['joints'] for s in scores]):.0f}"]
        cells += [f"{np.mean([s.rewards[column] for s in scores]):.3f}" for column in columns]
        for weights in (PAPER_WEIGHTS, GUARDED_WEIGHTS):
            sums = [total(score, weights) for score in scores]
            reals = [total(asset["artist's rig"], weights) for asset in assets]
            wins = sum(ours > real for ours, real in zip(sums, reals, strict=True))
            cells += [f"{np.mean(sums):.2f}", "" if name == "artist's rig" else f"{wins} of {len(assets)}"]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Score the zoo of each file and print the table; exit status 2 if a file cannot be read or scored."""
    parser = argparse.ArgumentParser(
        prog="python -m rewards.zoo", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("rigged", type=Path, nargs="+", help="rigged GLB files")
    settings = RewardSettings()
    zoo: dict[str, Any] = {}
    for path in parser.parse_args(arguments).rigged:
        try:
            zoo[path.stem] = score_zoo(*read_artist(path, settings), settings)
        except RewardError as error:
            print(f"error: {path}: {error}", file=sys.stderr)
            return 2
        except MeshError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    print(table(zoo))
    return 0


if __name__ == "__main__":
    sys.exit(main())
