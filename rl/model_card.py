"""Writes the model card of a run's policy: how to load it, data, recipe, results with errors, licences."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData

from data.sets.prepared import is_prepared
from data.typed_recipe import flat, to_mapping
from policy.tokenrig.configuration import TokenRigConfig
from rl.best_policy import BestPolicy
from rl.evaluation_results import Evaluation, compare
from rl.evaluation_tables import (
    change_cells,
    describe,
    measure_cell,
    measure_label,
    measure_sections,
    standard_error_cell,
)
from rl.recipe import Recipe, check_recipe
from rl.run_directory import affects_training
from rl.run_files import CARD_FILE

UNKNOWN = "unknown"  # the Hub's identifier for that, too
TAGS = ("tokenrig", "rigging", "skinning", "skeleton", "3d", "mesh", "grpo", "reinforcement-learning", "trl")
_PROJECT = "tokenrig-rl"
_SHOWN = (_PROJECT, "torch", "transformers", "trl")
# Where huggingface_hub keeps a repository that it downloaded.
_SNAPSHOT = re.compile(r"models--(?P<account>[^/]+?)--(?P<name>[^/]+)/snapshots/[^/]+$")


@dataclass(frozen=True)
class BasePolicy:
    """The policy that a run started from.

    name: as the card shows it. repository: on the Hub, if its folder is huggingface_hub's. licence: as its
    own model card says, None if it has none or does not say. imported: whether it is a released checkpoint.
    """

    name: str
    repository: str | None
    licence: str | None
    imported: bool


@dataclass(frozen=True)
class CardFacts:
    """What a card is made from.

    Attributes:
        recipe: the run's.
        base: the policy that it started from.
        processes: of the run.
        training, held_out: numbers of meshes.
        step: optimiser steps that the policy was trained for.
        before, after: evaluations of the base policy and of this one, each None if there is none.
        best: why the policy was chosen, if it is that of `policy_best/`.
    """

    recipe: Recipe
    base: BasePolicy
    processes: int
    training: int
    held_out: int
    step: int
    before: Evaluation | None
    after: Evaluation | None
    best: BestPolicy | None = None

    @property
    def licence(self) -> str:
        """The base policy's licence if nothing else counts: it is known, and no mesh is the user's."""
        return UNKNOWN if self.base.licence is None or uses_files(self.recipe) else self.base.licence


def base_policy(recipe: Recipe) -> BasePolicy:
    """What the folder of `policy.path` says of itself."""
    folder = Path(recipe.policy.path)
    found = _SNAPSHOT.search(folder.absolute().as_posix())
    repository = f"{found['account']}/{found['name']}" if found else None
    imported = False
    if (folder / "config.json").is_file():  # else the folder holds adapters
        imported = TokenRigConfig.from_pretrained(folder, local_files_only=True).release is not None
    return BasePolicy(
        repository or shown_place(str(folder)), repository, _licence_of(folder / CARD_FILE), imported
    )


def _licence_of(card: Path) -> str | None:
    """The licence that a model card names; one that cannot be read is reported on standard error."""
    if not card.is_file():
        return None
    try:
        said = ModelCard.load(card, ignore_metadata_errors=True).data.license
    except (ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        print(f"note: {card} has no readable YAML block, so no licence is known ({reason})", file=sys.stderr)
        return None
    return said if isinstance(said, str) and said != UNKNOWN else None


def uses_files(recipe: Recipe) -> bool:
    """Whether meshes come from files, which have owners, and not from this project's generator alone."""
    return recipe.data.meshes is not None or recipe.data.eval_meshes is not None


def model_card(facts: CardFacts) -> str:
    """The card as Markdown, with the YAML block of Hugging Face's model cards in front.

    It shows no absolute path and no name of a mesh.
    """
    recipe, base = facts.recipe, facts.base
    related: dict[str, Any] = {}
    if base.repository is not None:
        related = {"base_model": base.repository, "base_model_relation": "finetune"}
    data = ModelCardData(
        license=facts.licence,
        library_name=_PROJECT,
        tags=list(TAGS),
        **related,
    )
    name = Path(recipe.output_dir).absolute().name
    parts = [
        f"# {name}{' (best policy)' if facts.best else ''}",
        "A TokenRig policy: it reads a 3D mesh and writes a rig (skeleton and skinning weights) as tokens. "
        f"It is the policy `{base.name}` after {facts.step} steps of reinforcement learning (GRPO) with "
        f"{_PROJECT}, on geometric rewards of the rigs that it samples.",
        _loading(recipe),
        _data(facts),
        _recipe(facts),
        _results(facts),
        _licence(facts),
    ]
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n"


def _loading(recipe: Recipe) -> str:
    length, data = recipe.train["max_completion_length"], recipe.data
    return f"""## How to load it

In a clone of {_PROJECT}, where it is installed; ACCOUNT/NAME stands for this repository or its folder:

```bash
hf download ACCOUNT/NAME --local-dir downloaded
python -m rl.rig recipes/base.yaml policy.path=downloaded rig.mesh=mesh.glb rig.out=rigged.glb \\
    data.points={data.points} data.class_name={data.class_name or "null"} train.max_completion_length={length}
```

```python
import policy.auto  # registers TokenRig with transformers
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("ACCOUNT/NAME")  # the language model with its mesh encoder
```

`policy.load("downloaded")` also loads the skin VAE in `skin_vae/`, which turns SkinTokens into weights."""


def _data(facts: CardFacts) -> str:
    data = facts.recipe.data
    held_out = data.eval_meshes if data.eval_meshes is not None else data.meshes
    rows = [
        ("training", facts.training, _source(data.meshes, facts.recipe)),
        ("held out", facts.held_out, _source(held_out, facts.recipe)),
    ]
    table = _table(("", "meshes", "from"), [(part, str(count), source) for part, count, source in rows])
    skeletons = (
        "Training gave the policy the skeletons of the meshes' own rigs, and rewarded the skin that it wrote."
        if data.skeleton == "given"
        else "Training used the meshes alone: rewards compare with no other rig."
    )
    return f"## Data\n\n{table}\n\nA mesh is seen as {data.points} points of its surface. {skeletons}"


def _source(names: str | Sequence[str] | None, recipe: Recipe) -> str:
    data = recipe.data
    if names is None:
        kinds = "kinds chosen by seed" if data.kinds is None else f"kinds {', '.join(data.kinds)}"
        turned = f", turned by up to {data.max_turn_deg:g}°" if data.max_turn_deg else ""
        return f"procedural creatures ({kinds}{turned}, data.seed {data.seed})"
    listed = [names] if isinstance(names, str) else list(names)
    return ", ".join(
        f"{'prepared rigs' if is_prepared(name) else 'files'} `{shown_place(name)}`" for name in listed
    )


def _recipe(facts: CardFacts) -> str:
    recipe, train = facts.recipe, facts.recipe.train
    lora, rewards, poses = recipe.policy.lora, recipe.rewards, recipe.deformation
    trained = "the language model" if lora is None else f"LoRA adapters of rank {lora.rank}, merged"
    trained += (
        ", and the mesh encoder" if recipe.policy.train_mesh_encoder else "; the mesh encoder is frozen"
    )
    rollouts = train["per_device_train_batch_size"] * train["gradient_accumulation_steps"] * facts.processes
    posed = f"{poses.frames} recorded" if isinstance(poses.poses, str) else f"{poses.poses} random"
    posed += f", up to {poses.max_angle_deg:g}°" if not isinstance(poses.poses, str) else ""
    posed += f"; {poses.wide_poses} more, up to {poses.wide_angle_deg:g}°" if poses.wide_poses else ""
    weights = ", ".join(f"{name} × {weight:g}" for name, weight in rewards.weights.items())
    software = [f"{package} {found}" for package in _SHOWN if (found := _version(package))]
    rows = [
        ("started from", f"`{facts.base.name}`"),
        ("trained", trained),
        ("steps", f"{facts.step} of {train['max_steps']}, in {_counted(facts.processes, 'process', 'es')}"),
        ("rollouts", f"{train['num_generations']} per mesh, {rollouts} per step"),
        ("rewards", weights + ("; credited by phase" if rewards.credit == "phase" else "")),
        ("poses of the smoothness reward", posed),
        ("loss", f"{train['loss_type']}, clip {train['epsilon']:g}, KL coefficient {train['beta']:g}"),
        ("learning rate", f"{train['learning_rate']:g}, {train['lr_scheduler_type']}"),
        ("sampling", f"temperature {train['temperature']:g}, grammar {recipe.policy.grammar}"),
        ("seed", str(train["seed"])),
        ("software", ", ".join(software)),
    ]
    changed = changed_keys(recipe)
    keys = ""
    if changed:
        text = yaml.safe_dump(changed, sort_keys=False, allow_unicode=True)
        keys = f"\n\nKeys that differ from the defaults and affect the training:\n\n```yaml\n{text}```"
    return f"## Recipe\n\n{_table(('', ''), rows)}{keys}"


def changed_keys(recipe: Recipe) -> dict[str, Any]:
    """The keys that affect training and differ from the defaults, nested; paths as `shown_place`."""
    defaults = flat(to_mapping(check_recipe(Recipe())))
    changed: dict[str, Any] = {}
    for key, value in flat(to_mapping(recipe)).items():
        if affects_training(key) and (key not in defaults or defaults[key] != value):
            *sections, name = key.split(".")
            place = changed
            for section in sections:
                place = place.setdefault(section, {})
            place[name] = _without_places(value)
    return changed


def _without_places(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    return shown_place(value) if isinstance(value, str) else value


def shown_place(text: str) -> str:
    """A path as a card shows it: as it is if it is relative, else its last part, a pattern with its folder.

    Other text comes back as it is.
    """
    parts = Path(text).parts
    if not Path(text).is_absolute() and ".." not in parts:
        return text
    patterns = [place for place, part in enumerate(parts) if re.search(r"[*?\[]", part)]
    start = patterns[0] - 1 if patterns else len(parts) - 1
    return "/".join(part for part in parts[max(start, 0) :] if part not in ("/", "..")) or "/"


def _results(facts: CardFacts) -> str:
    before, after = facts.before, facts.after
    if after is None:
        return "## Results\n\nThe run did not evaluate this policy (`eval.before_and_after: false`)."
    chosen = ""
    if facts.best is not None:
        chosen = (
            f"The policy of step {facts.best.step} has the best `{facts.best.by}` of the evaluations during "
            f"training, every {facts.recipe.eval.every} steps on these very meshes, so that its numbers are "
            "better than they would be on others.\n\n"
        )
    if before is None:
        heads: tuple[str, ...] = ("", "mean", "± s.e.")
        about = "s.e.: standard error over meshes. There is no such evaluation of the policy it started from."
    else:
        about = "± is the standard error of the difference, paired by mesh; seeds are the same."
        heads = ("", "before", "after", "difference ± s.e.")
    about += " In rewards, a failed rig counts 0."
    tables = []
    for title, columns in measure_sections([after] if before is None else [before, after]):
        rows = [(measure_label(column), *_cells(column, before, after)) for column in columns]
        if rows:
            tables.append((f"{title}:\n\n" if title else "") + _table(heads, rows))
    return f"## Results\n\n{chosen}{describe(after)}. {about}\n\n" + "\n\n".join(tables)


def _cells(column: str, before: Evaluation | None, after: Evaluation) -> list[str]:
    mean = measure_cell(column, after.mean.get(column))
    if before is None:
        return [mean, standard_error_cell(column, after)]
    change = change_cells(column, compare(before, after).get(column))[0]
    return [measure_cell(column, before.mean.get(column)), mean, change]


def _licence(facts: CardFacts) -> str:
    base = facts.base
    if base.licence is not None:
        lines = [f"* **Base weights** (`{base.name}`): {base.licence}, says their model card."]
    else:
        lines = [f"* **Base weights** (`{base.name}`): unknown; their folder has no model card that says so."]
        if base.imported:
            lines[0] += (
                " They were imported from a released checkpoint; the terms of its publisher apply to them."
            )
    if uses_files(facts.recipe):
        lines.append("* **Meshes**: unknown; the run read files and recorded no licence of theirs.")
    else:
        lines.append(f"* **Meshes**: made by {_PROJECT}, whose code is under the MIT licence.")
    if facts.licence == UNKNOWN:
        lines.append(
            "* **These weights**: unknown therefore. Find out what the above allow, and set `license` at the "
            f"top of this {CARD_FILE}, before you publish them."
        )
    return "## Licence\n\n" + "\n".join(lines)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    numeric = len(heads) > 2 and heads[1] != "meshes"
    rules = ["---", *(["---:" if numeric else "---"] * (len(heads) - 1))]
    lines = [heads, rules, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _counted(count: int, noun: str, plural: str) -> str:
    return f"{count} {noun}{plural if count != 1 else ''}"


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
