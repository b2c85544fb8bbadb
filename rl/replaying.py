"""Scores kept rollouts again from their rows, with the run's recipe, meshes and skin decoder."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from data.mesh import MeshError
from data.sets.dataset import MeshSample
from data.typed_recipe import RecipeError, build, read_recipe
from policy.policy_folder import PolicyError, adapter_base, find_skin_vae
from policy.skintokens.skin_vae import SkinVAE
from policy.tokenrig.configuration import TokenRigConfig
from policy.tokens.text_tokenizer import parse_mesh_prompt
from policy.tokens.vocabulary import Vocabulary
from rewards.service import InlineRewardService
from rewards.worker import RolloutScore
from rl.given_skeleton import true_skeleton
from rl.keep_rollouts import decoder_digest
from rl.meshes import load_meshes, load_one, reward_meshes
from rl.recipe import Recipe, check_recipe, reward_settings
from rl.rollout_store import ROWS_FILE, KeptRollout, read_row, read_rows
from rl.run_files import RECIPE_FILE
from rl.scoring import read_rollout


def replay(
    place: str, recipe_file: str | None, overrides: Sequence[str], meshes: str | None, tolerance: float
) -> int:
    """Score the rows at `place` again and print what was kept beside what comes out; see `rl.replay`.

    Returns 0 if all rewards agree within `tolerance`, otherwise 1. Rows that were kept without a score have
    nothing to compare with. Raises RecipeError or MeshError for a row that cannot be scored.
    """
    rows, folder = rows_at(place)
    file = Path(recipe_file) if recipe_file is not None else folder.parent / RECIPE_FILE
    if recipe_file is None and not file.is_file():
        raise RecipeError(f"{place}: there is no {file}, the recipe of the run; pass it with --recipe")
    scorer = Scorer(scoring_recipe(file, overrides), meshes)
    differing = 0
    for name, row in rows:
        scored = scorer.score(row, name)
        print(f"{name}: step {row.step}, {row.why}, {row.mesh}")
        for line in comparison(row, scored):
            print(f"  {line}")
        differing += differs(row, scored, tolerance)
    count = f"{len(rows)} row{'s' * (len(rows) != 1)}"
    if differing:
        print(f"{differing} of {count} differ by more than {tolerance:g}")
        return 1
    print(f"{count}: the rewards agree within {tolerance:g}")
    return 0


def rows_at(place: str) -> tuple[list[tuple[str, KeptRollout]], Path]:
    """The rows that a path names, each with its own place, and the folder they are in.

    Raises RecipeError if there is no such row.
    """
    match = re.fullmatch(r"(.+\.jsonl):(\d+)", place)
    path = Path(match[1] if match else place)
    if path.is_dir():
        path = path / ROWS_FILE
    if not path.is_file():
        raise RecipeError(f"{place}: no such file; pass the path of a row, of {ROWS_FILE}, or their folder")
    if path.suffix == ".json":
        return [(str(path), read_row(path.read_bytes(), str(path)))], path.absolute().parent
    if match is None:
        rows = [(f"{path}:{number}", row) for number, row in enumerate(read_rows(path), 1)]
        if not rows:
            raise RecipeError(f"{path} has no rows; the run has kept no rollout")
        return rows, path.absolute().parent
    lines, number = path.read_bytes().splitlines(), int(match[2])
    if not 1 <= number <= len(lines):
        raise RecipeError(f"{place}: {path} has rows 1 to {len(lines)}; choose one of them")
    return [(place, read_row(lines[number - 1], place))], path.absolute().parent


def scoring_recipe(file: Path, overrides: Sequence[str]) -> Recipe:
    """The run's recipe without what only training needs, which depends on the number of its processes."""
    values = read_recipe(file, overrides)
    train = values.get("train", {})
    values["train"] = {key: train[key] for key in ("max_completion_length",) if key in train}
    values.pop("profile", None)
    return check_recipe(build(Recipe, values))


class Scorer:
    """Scores rows one by one; meshes and the decoder are loaded once.

    Raises RecipeError if the recipe's policy has no usable skin VAE.
    """

    def __init__(self, recipe: Recipe, meshes: str | None) -> None:
        self.recipe, self._folder = recipe, meshes
        source = Path(recipe.policy.path)
        try:
            skin_vae = SkinVAE.load(find_skin_vae(source, recipe.policy.skin_vae))
            config = TokenRigConfig.from_pretrained(adapter_base(source) or source, local_files_only=True)
        except (PolicyError, OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise RecipeError(f"'policy.path': {reason}") from error
        self.vocabulary: Vocabulary = config.get_vocabulary()
        self._digest = decoder_digest(skin_vae, self.vocabulary)
        workers = recipe.workers
        self._service = InlineRewardService(
            skin_vae, reward_settings(recipe), workers.decoder_device, dtype=workers.decoder_dtype
        )
        self._find = cache(self._load)
        self._prepared: str | None = None

    def score(self, row: KeptRollout, place: str) -> RolloutScore:
        """The score of a row now.

        Raises:
            RecipeError: the row is of another policy or its prompt is damaged.
            MeshError: its mesh is missing, has changed, or cannot be scored.
        """
        if row.decoder != self._digest:
            raise RecipeError(
                f"{place} is a rollout of another policy: the skin VAE or vocabulary of "
                f"{self.recipe.policy.path} is not the one that it was scored with; pass "
                f"policy.path=DIRECTORY (the run used {row.policy})"
            )
        try:
            _, class_id = parse_mesh_prompt(row.prompt, self.vocabulary)
        except ValueError as error:
            raise RecipeError(f"{place} is damaged: {error}") from error
        sample = self._find(row.mesh, row.mesh_file)
        (mesh,) = reward_meshes([sample])
        if mesh.key != row.mesh_key:
            raise MeshError(
                f"{place}: the mesh '{row.mesh}' is not the one that was scored: "
                f"{sample.file or 'the creature'} or the recipe's 'data' has changed since; restore it"
            )
        if self._prepared != mesh.key:
            (reason,) = self._service.prepare_meshes([mesh])
            if reason is not None:
                raise MeshError(f"{place}: {reason}")
            self._prepared = mesh.key
        given = true_skeleton(sample, self.vocabulary) if row.given_skeleton else None
        rig = read_rollout(row.tokens, class_id, self.vocabulary, given)
        return self._service.submit(0, [rig], row.pose_seed).result().scores[0]

    def _load(self, name: str, file: str | None) -> MeshSample:
        """The mesh that a row names, from its file or among the recipe's creatures."""
        if file is None:
            for sample in load_meshes(self.recipe).samples:
                if sample.name == name and sample.file is None:
                    return sample
            raise MeshError(f"the mesh '{name}' is none of the recipe's creatures; pass the run's --recipe")
        found = Path(file)
        if self._folder is not None:
            found = next(iter(sorted(Path(self._folder).rglob(found.name))), Path(self._folder) / found.name)
        if not found.is_file():
            raise MeshError(
                f"the file of the mesh '{name}' is missing: {found}; restore it, or pass --meshes FOLDER"
            )
        return replace(load_one(str(found), self.recipe), name=name)


def rewards_of(score: RolloutScore, names: Sequence[str]) -> dict[str, float] | None:
    """The rewards of a score by name, 0 for an invalid rig; None without a score, and NaN for a new name."""
    if score.rewards is None:
        return None
    return {name: score.rewards.get(name, float("nan")) if score.valid else 0.0 for name in names}


def comparison(row: KeptRollout, score: RolloutScore) -> list[str]:
    """Lines that show each reward and the total as kept and as scored now."""
    names = list(row.weights)
    now, kept = rewards_of(score, names), row.rewards
    lines = [f"{'':<24} {'kept':>12} {'now':>12}"]
    for name in names:
        lines.append(f"{name:<24} {_shown(kept, name):>12} {_shown(now, name):>12}")
    total = None if now is None else {"total": _total(row, now)}
    before = None if row.total is None else {"total": row.total}
    lines.append(f"{'total':<24} {_shown(before, 'total'):>12} {_shown(total, 'total'):>12}")
    if row.failure is not None:
        lines.append(f"failure: {row.failure}")
    return lines


def differs(row: KeptRollout, score: RolloutScore, tolerance: float) -> bool:
    """Whether a reward or the total differs by more than `tolerance`, or only one of both is a number."""
    if row.rewards is None or row.total is None:
        return False
    now = rewards_of(score, list(row.rewards))
    if now is None:
        return True
    pairs = [(float(value), now[name]) for name, value in row.rewards.items()]
    pairs.append((float(row.total), _total(row, now)))
    return any(not (abs(a - b) <= tolerance or a == b or (math.isnan(a) and math.isnan(b))) for a, b in pairs)


def _total(row: KeptRollout, rewards: Mapping[str, float]) -> float:
    return sum(row.weights[name] * value for name, value in rewards.items())


def _shown(values: Mapping[str, float] | None, name: str) -> str:
    return "not scored" if values is None else f"{float(values[name]):.6f}"
