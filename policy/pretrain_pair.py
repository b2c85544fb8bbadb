"""Trains the pair of skin VAE and policy in one command: prepares rigs, then runs what is not finished."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.state import AcceleratorState

from data.atomic import write_atomic
from data.command_line import run_command
from data.formats.rig_formats import find_rigs
from data.prepare import PrepareSettings, prepare, unknown_entries
from data.sets.groups import read_groups
from data.typed_recipe import PathText, RecipeError, build, read_recipe, to_mapping
from policy import pretrain_skin_vae, pretrain_tokenrig
from policy.bundle import atomic_directory
from policy.policy_folder import PolicyError, check_replaceable
from policy.pretraining.processes import is_main_process, main_process_only, shared_lock
from policy.pretraining.start import created_output

# Keys of `loop` that may change when a run resumes: its result stays the same, but for rounding.
FREE = ("dataloader_workers", "compile", "save_steps", "logging_steps", "report_to")


@dataclass(frozen=True)
class StageRun:
    """One run of a chain: a stage's recipe with its overrides."""

    stage: Literal["skin_vae", "tokenrig"] = "skin_vae"
    """`skin_vae` is stage 1, `tokenrig` stage 2 with the last skin VAE before it. Source: this project."""

    recipe: str = ""
    """The stage's recipe, relative to the chain's. The chain sets its `data.sources`, `validation.rigs`,
    `skin_vae` and `loop.output_dir`, and from the second run of a stage on `start_from`. Source: this
    project."""

    rigs_share: float = 0.5
    """Share of the examples that are prepared rigs; 0 to 1. Source: this project."""

    lifelike_share: float = 0.0
    """Share of the examples that are creatures of the `lifelike` kinds, which look like game artists' rigs;
    0 to 1 together with `rigs_share`. The remaining examples are creatures of the other kinds. Without a
    folder of rigs, the ratio between the two groups of creatures stays. Source: this project."""

    overrides: list[str] = field(default_factory=list)
    """Overrides of the stage's recipe, such as `loop.max_steps=500`. Source: this project."""

    on_cuda: list[str] = field(default_factory=list)
    """Further overrides on a machine with a GPU, such as a larger `loop.batch_size`. Source: this project."""

    def __post_init__(self) -> None:
        if not self.recipe:
            raise ValueError("'recipe' is missing; name the stage's recipe file")
        for name in ("rigs_share", "lifelike_share"):
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise ValueError(f"'{name}' must be between 0 and 1, not {share}")
        if self.rigs_share + self.lifelike_share > 1:
            raise ValueError(
                f"'rigs_share' and 'lifelike_share' are {self.rigs_share} + {self.lifelike_share}, more than "
                "1; lower one"
            )


@dataclass(frozen=True)
class PairRecipe:
    """Runs that end in a policy with its skin VAE. A stage's second run starts from the first's weights."""

    rigs: PathText | None = None
    """Folder of rigs as `python -m data.prepare` takes them; null or empty for procedural creatures alone.
    Source: this project."""

    manifest: str = "MANIFEST.json"
    """JSON file in that folder with the `split` and `family` of each file. Without it, `eval_share` of the
    rigs is held out, by whole folders. Source: this project."""

    skip: list[str] = field(default_factory=list)
    """Patterns of names of files to skip, such as rigs whose licence rules out training. Source: this
    project."""

    eval_share: float = 0.1
    """Share of the rigs that is held out if there is no manifest; above 0 and below 1. Source: this
    project."""

    runs: tuple[StageRun, ...] = ()
    """The runs, in order; the first one of `skin_vae`, the last one of `tokenrig`. Source: this project."""

    every_run: list[str] = field(default_factory=list)
    """Overrides of the recipes of all runs, such as `loop.dataloader_workers=2`. Source: this project."""

    output_dir: PathText = "outputs/pair"
    """Directory for the prepared rigs, a folder per run, and the result in `policy`. Source: this project."""

    def __post_init__(self) -> None:
        stages = [run.stage for run in self.runs]
        if not stages or stages[0] != "skin_vae" or stages[-1] != "tokenrig":
            raise RecipeError("'runs' must begin with a run of stage skin_vae and end with one of tokenrig")
        if not 0 < self.eval_share < 1:
            raise RecipeError(f"'eval_share' must be above 0 and below 1, not {self.eval_share}")


@dataclass(frozen=True)
class Run:
    """A run with its resolved recipe.

    `folder`: of its checkpoints and metrics. `result`: directory of the trained model. `inputs`: the files of
    this chain that it is made from.
    """

    stage: str
    recipe: Any
    folder: Path
    result: Path
    inputs: tuple[Path, ...]


def load_recipe(path: str, overrides: Sequence[str]) -> PairRecipe:
    """Read and check a chain's recipe and those of its runs; raises RecipeError."""
    recipe = build(PairRecipe, read_recipe(path, overrides))
    beside = Path(path).parent
    runs = tuple(replace(run, recipe=str(beside / run.recipe)) for run in recipe.runs)
    recipe = replace(recipe, runs=runs, rigs=recipe.rigs or None)
    planned(recipe)
    return recipe


def planned(recipe: PairRecipe) -> list[Run]:
    """The runs with their recipes resolved for this machine; RecipeError, naming the run, for a bad one."""
    output, rigs = Path(recipe.output_dir), Path(recipe.output_dir) / "rigs"
    runs: list[Run] = []
    for number, one in enumerate(recipe.runs):
        earlier = [run for run in runs if run.stage == one.stage]
        folder = output / (f"{one.stage}_{len(earlier) + 1}" if earlier else one.stage)
        used = [rigs / "manifest.json"] if recipe.rigs else []
        chained = [
            f"data.sources={json.dumps(sources(one, rigs if recipe.rigs else None))}",
            f"validation.rigs={json.dumps(str(rigs)) if recipe.rigs else 'null'}",
            f"loop.output_dir={json.dumps(str(folder))}",
        ]
        if earlier:
            chained.append(f"start_from={json.dumps(str(earlier[-1].result))}")
            used.append(earlier[-1].result / "model.safetensors")
        if one.stage == "tokenrig":
            vae = [run for run in runs if run.stage == "skin_vae"][-1].result
            chained.append(f"skin_vae={json.dumps(str(vae))}")
            used.append(vae / "model.safetensors")
        stage = _STAGES[one.stage]
        try:
            _refuse_chained([*one.overrides, *one.on_cuda, *recipe.every_run], chained)
            # Both, so that the settings for a GPU are checked on every machine.
            on_cpu, on_cuda = (
                stage.load_recipe(one.recipe, [*one.overrides, *further, *recipe.every_run, *chained])
                for further in ([], one.on_cuda)
            )
        except RecipeError as error:
            raise RecipeError(f"'runs[{number}]': {error}") from error
        resolved = on_cuda if torch.cuda.is_available() else on_cpu
        runs.append(Run(one.stage, resolved, folder, folder / stage.result, tuple(used)))
    return runs


def _refuse_chained(overrides: Sequence[str], chained: Sequence[str]) -> None:
    """Raise RecipeError for an override of a key that the chain sets."""
    keys = {one.partition("=")[0] for one in chained}
    for override in overrides:
        if (key := override.partition("=")[0].strip()) in keys:
            raise RecipeError(f"override '{override}': the chain sets '{key}'; remove the override")


def sources(run: StageRun, rigs: Path | None) -> list[dict[str, Any]]:
    """`data.sources` of a run: plain and lifelike creatures, and the prepared folder `rigs` if given."""
    shares: list[tuple[float, dict[str, Any]]] = [
        (1 - run.rigs_share - run.lifelike_share, {"creatures": True}),
        (run.lifelike_share, {"creatures": True, "kinds": ["lifelike"]}),
    ]
    if rigs is not None:
        shares.append((run.rigs_share, {"prepared": str(rigs)}))
    found = [source | {"weight": round(share, 6)} for share, source in shares if share > 1e-6]
    return found or [{"creatures": True}]  # a share of 1 of rigs that are not there


@dataclass(frozen=True)
class _Stage:
    """A stage's functions, the folder of its result in a run's folder, and its name in progress lines."""

    load_recipe: Callable[[str, Sequence[str]], Any]
    train: Callable[[Any], Path]
    result: str
    title: str


_STAGES = {
    "skin_vae": _Stage(pretrain_skin_vae.load_recipe, pretrain_skin_vae.train, "skin_vae", "skin VAE"),
    "tokenrig": _Stage(pretrain_tokenrig.load_recipe, pretrain_tokenrig.train, "policy", "TokenRig"),
}


def train(recipe: PairRecipe) -> Path:
    """Run what is not finished and return the policy's directory, `<output_dir>/policy`.

    Raises RecipeError if an earlier result in `output_dir` was made from other recipes or rigs.
    """
    output = created_output(recipe.output_dir, "output_dir")
    target, runs = output / "policy", planned(recipe)
    total = len(runs) + 2
    try:
        check_replaceable(target)  # before training rather than after it
    except PolicyError as error:
        raise RecipeError(f"'output_dir': {error}") from error
    with shared_lock(output, "output_dir"):
        with main_process_only() as main:
            if main:
                prepare_rigs(recipe, f"1/{total}")
        for number, run in enumerate(runs, start=2):
            stage, finished = _STAGES[run.stage], check_unchanged(run)
            _tell(f"{number}/{total} {stage.title}: {run.folder}{', finished earlier' * finished}")
            if not finished:
                # accelerate keeps the precision of a process's first run.
                AcceleratorState._reset_state()
                stage.train(run.recipe)
        with main_process_only() as main:
            if main and not _same_policy(runs[-1].result, target):
                with atomic_directory(target) as folder:
                    shutil.copytree(runs[-1].result, folder, dirs_exist_ok=True)
        size = sum(file.stat().st_size for file in target.rglob("*.safetensors"))
        _tell(f"{total}/{total} policy and skin VAE: {target}, {size / 1e6:.1f} MB")
    return target


def prepare_rigs(recipe: PairRecipe, number: str) -> None:
    """Prepare the rigs in `<output_dir>/rigs`; files that have not changed are not read again.

    `number`: of this step, for its progress line. Raises RecipeError for a folder that does not exist and
    for a split that leaves no rigs on one side, MeshError as `prepare` does.
    """
    if recipe.rigs is None:
        _tell(f"{number} rigs: none, training on procedural creatures alone")
        return
    source = Path(recipe.rigs)
    if not source.is_dir():
        raise RecipeError(
            f"'rigs': there is no folder '{source}'; name one with skinned GLB files, such as the public CC0 "
            "packs of KayKit, Quaternius and Kenney, or train on procedural creatures alone with an empty "
            "value (make small-pair RIGS=)"
        )
    files, groups, splits = find_rigs(source), None, None
    listed = source / recipe.manifest
    if listed.is_file():
        groups, splits = (read_groups(f"{one}:{listed}", "'manifest'") for one in ("family", "split"))
    elif len({file.parent for file in files}) > 1:
        groups = read_groups("folder")
    # Unlike those of a command line, a recipe's patterns are for any folder: one may match no file here.
    skip = tuple(one for one in recipe.skip if any(fnmatch(file.name, one) for file in files))
    settings = PrepareSettings(recipe.eval_share, groups=groups, splits=splits, skip=skip)
    folder = Path(recipe.output_dir) / "rigs"
    manifest = prepare([source], folder, settings)
    for line in unknown_entries(manifest, settings):
        _tell(f"{number} note: {line}")
    held_out = sum(rig.split == "eval" for rig in manifest.rigs)
    training = len(manifest.rigs) - held_out
    if not (training and held_out):
        missing = "for training" if held_out else "held out for validation"
        fix = "correct the splits" if splits else "add rigs, or list the split of each"
        raise RecipeError(
            f"'rigs': none of the {len(manifest.rigs)} rigs in '{source}' is {missing}; {fix} in {listed}"
        )
    if splits is None:
        _tell(f"{number} note: {listed} does not exist, so {recipe.eval_share:.0%} of the rigs are held out")
    _tell(
        f"{number} rigs: {training} for training, {held_out} held out, {len(manifest.refused)} refused; in "
        f"{folder}"
    )


def check_unchanged(run: Run) -> bool:
    """Whether the run is finished. Records what it is made from when it begins.

    Raises RecipeError if the folder holds a run of another recipe or made from other rigs or weights.
    """
    inputs = {path.parent.name: _digest(path) for path in run.inputs}
    record, written = run.folder / "inputs.json", run.folder / "recipe.yaml"
    if record.is_file():
        known = read_recipe(record)  # JSON is YAML
        changed = sorted(name for name in known.keys() | inputs.keys() if known.get(name) != inputs.get(name))
        if changed:
            raise RecipeError(
                f"'output_dir': '{run.folder}' was made from other {changed[0]}; delete it and what follows "
                "from it, or choose another directory"
            )
    if written.is_file():
        before, now = read_recipe(written), to_mapping(run.recipe)
        key = _difference(before, now)
        if key is not None:
            raise RecipeError(
                f"'output_dir': '{run.folder}' holds a run with another '{key}'; delete the folder and what "
                "follows from it, or choose another directory"
            )
    if is_main_process() and not record.is_file():
        run.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(record, json.dumps(inputs, indent=1).encode())
    return (run.result / "config.json").is_file()


def _difference(before: Any, now: Any, key: str = "") -> str | None:
    """The first dotted key whose values differ, except FREE ones of the loop; None if there is none."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in {**now, **before}:
            where = f"{key}.{name}" if key else name
            if key == "loop" and name in FREE:
                continue
            found = _difference(before.get(name), now.get(name), where)
            if found is not None:
                return found
        return None
    return None if json.dumps(before) == json.dumps(now) else key


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _same_policy(one: Path, other: Path) -> bool:
    """Whether `other` has every file of `one` with the same content."""
    names = sorted(str(file.relative_to(one)) for file in one.rglob("*") if file.is_file())
    return all((other / name).is_file() and _digest(one / name) == _digest(other / name) for name in names)


def _tell(line: str) -> None:
    """Print a progress line, in the main process."""
    if is_main_process():
        print(f"pair {line}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: `python -m policy.pretrain_pair recipes/small_pair.yaml`."""
    return run_command(__doc__ or "", load_recipe, train, argv, "python -m policy.pretrain_pair")


if __name__ == "__main__":
    sys.exit(main())
