"""Trains the pair, skin VAE and policy, from nothing: prepares rigs, then runs what is not finished."""

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
from policy.policy_folder import check_replaceable
from policy.pretraining.processes import is_main_process, main_process_only, shared_lock

# What a run may be continued with otherwise: it changes neither the weights nor their meaning.
FREE = ("dataloader_workers", "compile", "save_steps", "logging_steps", "report_to")


@dataclass(frozen=True)
class StageRun:
    """One run of a chain: a stage's recipe with its overrides."""

    stage: Literal["skin_vae", "tokenrig"] = "skin_vae"
    """`skin_vae` is stage 1, `tokenrig` stage 2, with the last skin VAE before it. Source: this project."""

    recipe: str = ""
    """The stage's recipe, relative to the chain's. Its `data.sources`, `validation.rigs`, `start_from`,
    `skin_vae` and `loop.output_dir` are set by the chain. Source: this project."""

    rigs_share: float = 0.5
    """Share of the prepared rigs among the examples; 0 to 1. Source: this project."""

    lifelike_share: float = 0.0
    """Share of the `lifelike` creature kinds, which look like game artists' rigs, among the examples; 0 to 1
    with `rigs_share`. The rest are creatures of the other kinds. Without a folder of rigs the two kinds of
    creatures share the whole as they share the rest. Source: this project."""

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
    """Runs that end in a policy with its skin VAE. A second run of a stage goes on from the first."""

    rigs: PathText | None = None
    """Folder of rigs as `python -m data.prepare` takes them; null or empty for procedural creatures alone.
    Source: this project."""

    manifest: str = "MANIFEST.json"
    """JSON file in that folder with the `split` and `family` of each file; if there is none, `eval_share` of
    the rigs is held out, by folders. Source: this project."""

    skip: list[str] = field(default_factory=list)
    """Patterns of file names that are passed over, such as those of rigs whose licence does not allow it.
    Source: this project."""

    eval_share: float = 0.1
    """Share that is held out without a manifest; at least 0 and below 1. Source: this project."""

    runs: tuple[StageRun, ...] = ()
    """The runs, in order; the first one of `skin_vae`, the last one of `tokenrig`. Source: this project."""

    every_run: list[str] = field(default_factory=list)
    """Overrides of all runs' recipes, such as `loop.dataloader_workers=2`. Source: this project."""

    output_dir: PathText = "outputs/pair"
    """Directory for the prepared rigs, a folder per run, and the result in `policy`. Source: this project."""

    def __post_init__(self) -> None:
        stages = [run.stage for run in self.runs]
        if not stages or stages[0] != "skin_vae" or stages[-1] != "tokenrig":
            raise RecipeError("'runs' must begin with a run of stage skin_vae and end with one of tokenrig")


@dataclass(frozen=True)
class Run:
    """A run with its resolved recipe; `result` is the directory of the trained model."""

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
    """The runs with their recipes resolved for this machine; raises RecipeError."""
    output, rigs = Path(recipe.output_dir), Path(recipe.output_dir) / "rigs"
    runs: list[Run] = []
    for one in recipe.runs:
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
        here = one.on_cuda if torch.cuda.is_available() else []
        load, result = _STAGES[one.stage][0], folder / _STAGES[one.stage][2]
        resolved = load(one.recipe, [*one.overrides, *here, *recipe.every_run, *chained])
        runs.append(Run(one.stage, resolved, folder, result, tuple(used)))
    return runs


def sources(run: StageRun, rigs: Path | None) -> list[dict[str, Any]]:
    """`data.sources` of a run: prepared rigs (None: there are none), lifelike and other creatures."""
    shares: list[tuple[float, dict[str, Any]]] = [
        (1 - run.rigs_share - run.lifelike_share, {"creatures": True}),
        (run.lifelike_share, {"creatures": True, "kinds": ["lifelike"]}),
    ]
    if rigs is not None:
        shares.append((run.rigs_share, {"prepared": str(rigs)}))
    found = [source | {"weight": round(share, 6)} for share, source in shares if share > 1e-6]
    return found or [{"creatures": True}]  # rigs alone, and there are none


_STAGES: dict[str, tuple[Callable[..., Any], Callable[[Any], Path], str, str]] = {
    "skin_vae": (pretrain_skin_vae.load_recipe, pretrain_skin_vae.train, "skin_vae", "skin VAE"),
    "tokenrig": (pretrain_tokenrig.load_recipe, pretrain_tokenrig.train, "policy", "TokenRig"),
}


def train(recipe: PairRecipe) -> Path:
    """Run what is not finished and return the policy's directory, `<output_dir>/policy`.

    Raises RecipeError if an earlier result in `output_dir` was made from other recipes or rigs.
    """
    output = Path(recipe.output_dir)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(
            f"'output_dir': '{output}' cannot be written ({error.strerror}); choose another"
        ) from error
    runs = planned(recipe)
    total = len(runs) + 2
    check_replaceable(output / "policy")
    with shared_lock(output, "output_dir"):
        with main_process_only() as main:
            if main:
                prepare_rigs(recipe, f"1/{total}")
        for number, run in enumerate(runs, start=2):
            _, train_stage, _, title = _STAGES[run.stage]
            finished = check_unchanged(run)
            _tell(f"{number}/{total} {title}: {run.folder}" + (", finished earlier" if finished else ""))
            if not finished:
                # accelerate keeps the precision of a process's first run.
                AcceleratorState._reset_state()
                train_stage(run.recipe)
        target = output / "policy"
        with main_process_only() as main:
            if main and not _same_policy(runs[-1].result, target):
                with atomic_directory(target) as folder:
                    shutil.copytree(runs[-1].result, folder, dirs_exist_ok=True)
        size = sum(file.stat().st_size for file in target.rglob("*.safetensors"))
        _tell(f"{total}/{total} policy and skin VAE: {target}, {size / 1e6:.1f} MB")
    return target


def prepare_rigs(recipe: PairRecipe, number: str) -> None:
    """Prepare the rigs in `<output_dir>/rigs`; files that have not changed are not read again."""
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
    files = find_rigs(source)
    folders = len({file.parent for file in files}) > 1
    settings = PrepareSettings(
        eval_share=recipe.eval_share, groups=read_groups("folder") if folders else None
    )
    listed = source / recipe.manifest
    if listed.is_file():
        settings = replace(
            settings,
            groups=read_groups(f"family:{listed}"),
            sides=read_groups(f"split:{listed}", "--split"),
        )
    else:
        _tell(f"{number} rigs: no {listed}, so {recipe.eval_share:.0%} of the rigs are held out")
    names = [file.name for file in files]
    # Here, unlike on a command line, patterns are for whatever folder is given.
    skip = tuple(pattern for pattern in recipe.skip if any(fnmatch(name, pattern) for name in names))
    settings = replace(settings, skip=skip)
    manifest = prepare([source], Path(recipe.output_dir) / "rigs", settings)
    for line in unknown_entries(manifest, settings):
        _tell(f"{number} note: {line}")
    held_out = sum(rig.split == "eval" for rig in manifest.rigs)
    _tell(
        f"{number} rigs: {len(manifest.rigs) - held_out} for training, {held_out} held out, "
        f"{len(manifest.refused)} refused; in {Path(recipe.output_dir) / 'rigs'}"
    )


def check_unchanged(run: Run) -> bool:
    """Whether the run is finished; records what it is made from when it begins.

    Raises RecipeError if the folder holds a run of another recipe or made from other rigs or weights.
    """
    inputs = {path.parent.name: _digest(path) for path in run.inputs}
    record, written = run.folder / "inputs.json", run.folder / "recipe.yaml"
    if record.is_file():
        known = json.loads(record.read_text())
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
    """The first key whose values differ, FREE ones of the loop apart."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in now.keys() | before.keys():
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
    names = sorted(str(file.relative_to(one)) for file in one.rglob("*") if file.is_file())
    return all((other / name).is_file() and _digest(one / name) == _digest(other / name) for name in names)


def _tell(line: str) -> None:
    if is_main_process():
        print(f"pair {line}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: `python -m policy.pretrain_pair recipes/small_pair.yaml`."""
    return run_command(__doc__ or "", load_recipe, train, argv, "python -m policy.pretrain_pair")


if __name__ == "__main__":
    sys.exit(main())
