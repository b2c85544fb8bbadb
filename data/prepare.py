"""`python -m data.prepare IN… --out DIR`: rigs of any readable format, one safe NPZ each, and a manifest."""

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from data.atomic import write_atomic
from data.formats.load import Refusal
from data.formats.rig_formats import RigLimits, find_rigs, read_rigs
from data.formats.rig_npz import RiggedMesh, write_rig_npz
from data.formats.rignet_text import rignet_mesh
from data.mesh import MeshError
from data.sets.dataset import split
from data.sets.prepared import (
    RIGS,
    VERSION,
    Manifest,
    PreparedEntry,
    entry_from,
    read_manifest,
    write_manifest,
)

# Beside the manifest while and after preparing: what each source gave, so that a second run goes on.
JOURNAL = ".prepare.jsonl"
SHOWN_REFUSALS = 20


@dataclass(frozen=True)
class PrepareSettings:
    """How to prepare: `eval_share` of the rigs (at least one if above 0 and there are two) is held out by a
    hash of (seed, name); `class_name` labels all rigs, None keeps what their format says."""

    eval_share: float = 0.05
    seed: int = 0
    class_name: str | None = None
    limits: RigLimits = field(default_factory=RigLimits)

    def __post_init__(self) -> None:
        if not 0 <= self.eval_share < 1:
            raise MeshError(f"--eval {self.eval_share}: the share held out must be from 0 to below 1")


@dataclass(frozen=True)
class _Outcome:
    """What one source file gave; `stamp` tells whether the file and the settings are still the same."""

    source: str
    stamp: str
    rigs: tuple[PreparedEntry, ...]
    refused: tuple[Refusal, ...]


def prepare(
    inputs: Sequence[str | Path],
    out: str | Path,
    settings: PrepareSettings | None = None,
    progress: Callable[[Iterable[Path]], Iterable[Path]] = iter,
) -> Manifest:
    """Prepare all rigs that `inputs` name (see `find_rigs`) into the folder `out`; return its manifest.

    Every usable rig becomes `rigs/<name>.npz` (see `write_rig_npz`); names come from the path below the
    input folder and are unique. A rig equal to an earlier one is refused: it could stand on both sides of
    the split. Sources that an earlier run has prepared with the same settings, and that have not changed
    since, are not read again, so a run that was stopped goes on. The folder always holds what the last run
    was given: earlier rigs of other sources are removed. `manifest.json` comes last.
    Raises MeshError if an input names no file or nothing is usable (with the reasons), OSError if the
    folder cannot be written.
    """
    settings, out = settings or PrepareSettings(), Path(out)
    if out.exists() and not out.is_dir():
        raise MeshError(f"{out}: it is a file; name a folder for the prepared rigs")
    sources = _sources(inputs, out)
    (out / RIGS).mkdir(parents=True, exist_ok=True)
    journal = _Journal(out)
    earlier = {rig.file for outcome in journal.outcomes.values() for rig in outcome.rigs}
    with suppress(MeshError):  # A first run has none, and a damaged one is replaced.
        earlier |= {rig.file for rig in read_manifest(out).rigs}
    known = {
        path: outcome
        for path in sources
        if (outcome := journal.outcomes.get(str(path))) is not None
        and outcome.rigs  # What gave nothing is tried again,
        and path.suffix.lower() != ".gltf"  # and glTF, whose buffers may change in other files.
        and outcome.stamp == _stamp(path, sources[path], settings)
        and all((out / rig.file).is_file() for rig in outcome.rigs)
    }
    names = {rig.name.casefold() for outcome in known.values() for rig in outcome.rigs}
    digests = {rig.digest: rig.name for outcome in known.values() for rig in outcome.rigs}
    outcomes = []
    for path in progress(sources):
        outcome = known.get(path)
        if outcome is None:
            outcome = _prepare_source(path, sources[path], out, settings, names, digests)
            journal.add(outcome)
        outcomes.append(outcome)
    manifest = _split(outcomes, settings)
    if not manifest.rigs:
        reasons = "".join(f"\n  {refusal}" for refusal in manifest.refused[:SHOWN_REFUSALS])
        raise MeshError(
            f"{', '.join(map(str, inputs))}: none of {len(sources)} files holds a usable rig; mend or "
            f"replace them:{reasons}"
        )
    write_manifest(out, manifest)
    current = {rig.file for rig in manifest.rigs}
    journal.keep(outcomes)
    for file in earlier - current:
        (out / file).unlink(missing_ok=True)
    return manifest


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Exit code 0: done, 1: the disk failed, 2: nothing usable, 130: Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m data.prepare", description=__doc__)
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="IN",
        help="files, folders or quoted patterns: skinned GLB, NPZ, UniRig raw_data.npz, Articulation-XL NPZ, "
        "RigNet text",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="folder for the prepared rigs")
    parser.add_argument("--eval", type=float, default=0.05, metavar="SHARE", help="share held out (0.05)")
    parser.add_argument("--seed", type=int, default=0, help="another seed holds out other rigs (0)")
    parser.add_argument("--class", dest="class_name", metavar="NAME", help="class label of all rigs")
    limits = RigLimits()
    parser.add_argument("--max-faces", type=int, default=limits.max_faces, help=f"({limits.max_faces})")
    parser.add_argument("--max-joints", type=int, default=limits.max_joints, help=f"({limits.max_joints})")
    parser.add_argument(
        "--max-megabytes",
        type=int,
        default=limits.max_npz_bytes // 2**20,
        help=f"unpacked size of one NPZ file ({limits.max_npz_bytes // 2**20})",
    )
    given = parser.parse_args(argv)
    try:
        settings = PrepareSettings(
            given.eval,
            given.seed,
            given.class_name,
            replace(
                limits,
                max_faces=given.max_faces,
                max_joints=given.max_joints,
                max_npz_bytes=given.max_megabytes * 2**20,
            ),
        )
        manifest = prepare(
            given.inputs,
            given.out,
            settings,
            lambda files: tqdm(files, "prepare", unit="file", file=sys.stderr),
        )
    except MeshError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except OSError as problem:
        print(f"failed: {problem}; mend it and start again", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    _report(manifest, given.out)
    return 0


def _report(manifest: Manifest, out: str) -> None:
    if manifest.refused:
        print(f"refused {len(manifest.refused)}:", file=sys.stderr)
        for refusal in manifest.refused[:SHOWN_REFUSALS]:
            print(f"  {refusal}", file=sys.stderr)
        if len(manifest.refused) > SHOWN_REFUSALS:
            print(f"  … all of them are in {out}/manifest.json", file=sys.stderr)
    held_out = sum(rig.split == "eval" for rig in manifest.rigs)
    mended = sum(bool(rig.notes) for rig in manifest.rigs)
    print(
        f"{len(manifest.rigs)} rigs in {out}: {len(manifest.rigs) - held_out} to train on, "
        f"{held_out} held out; {mended} were mended"
    )


def _sources(inputs: Sequence[str | Path], out: Path) -> dict[Path, str]:
    """The files in sorted order with the names that their paths suggest; what lies in `out` is left out."""
    inside = out.resolve()
    suggested: dict[Path, str] = {}
    for one in inputs:
        files = [file for file in find_rigs(one) if not file.resolve().is_relative_to(inside)]
        if not files:
            raise MeshError(f"{one}: no rig file is there; check the path or pattern (quote it in a shell)")
        folder = Path(one).expanduser()
        for file in files:
            below = file.relative_to(folder) if folder.is_dir() else Path(file.name)
            parts = below.with_suffix("").parts
            if file.name == "raw_data.npz":
                # UniRig names the folder, not the file.
                parts = parts[:-1] or (file.resolve().parent.name,)
            suggested.setdefault(file, "__".join(parts))
    return dict(sorted(suggested.items()))


def _prepare_source(
    path: Path,
    suggested: str,
    out: Path,
    settings: PrepareSettings,
    names: set[str],
    digests: dict[str, str],
) -> _Outcome:
    """Read one file and write its rigs; `names` and `digests` of earlier rigs grow."""
    stamp = _stamp(path, suggested, settings)
    rigs: list[PreparedEntry] = []
    refused: list[Refusal] = []
    for item in read_rigs(path, settings.limits):
        if isinstance(item, Refusal):
            refused.append(item)
            continue
        rigged = item.rigged
        digest = _digest(rigged)
        if digest in digests:
            refused.append(
                Refusal(rigged.source, f"it is the same rig as {digests[digest]!r}; one of them is enough")
            )
            continue
        named = f"{suggested}_{item.part}" if item.part else suggested
        name = _unique(_clean(named), names)
        names.add(name.casefold())
        digests[digest] = name
        rigged = replace(
            rigged,
            mesh=replace(rigged.mesh, name=name),
            class_name=settings.class_name or rigged.class_name,
        )
        file = f"{RIGS}/{name}.npz"
        write_rig_npz(out / file, rigged)
        rigs.append(
            PreparedEntry(
                name=name,
                file=file,
                split="train",
                vertices=len(rigged.mesh.vertices),
                faces=len(rigged.mesh.faces),
                joints=len(rigged.rig.joints),
                class_name=rigged.class_name,
                source=rigged.source,
                digest=digest,
                notes=item.notes,
            )
        )
    return _Outcome(str(path), stamp, tuple(rigs), tuple(refused))


def _split(outcomes: Sequence[_Outcome], settings: PrepareSettings) -> Manifest:
    rigs = [rig for outcome in outcomes for rig in outcome.rigs]
    refused = tuple(refusal for outcome in outcomes for refusal in outcome.refused)
    count = 0
    if settings.eval_share > 0 and len(rigs) > 1:
        count = min(max(1, round(settings.eval_share * len(rigs))), len(rigs) - 1)
    held_out = {rig.name for rig in split(rigs, count, settings.seed)[1]} if rigs else set()
    placed = tuple(replace(rig, split="eval" if rig.name in held_out else "train") for rig in rigs)
    return Manifest(settings.seed, placed, refused)


class _Journal:
    """What each source gave in this folder so far; a line that was cut off counts for nothing."""

    def __init__(self, out: Path) -> None:
        self._path = out / JOURNAL
        self.outcomes: dict[str, _Outcome] = {}
        if self._path.is_file():
            for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
                outcome = _outcome_from(line)
                if outcome is not None:
                    self.outcomes[outcome.source] = outcome

    def add(self, outcome: _Outcome) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            # The line break before ends a line that was cut off.
            file.write("\n" + json.dumps(asdict(outcome)))
        self.outcomes[outcome.source] = outcome

    def keep(self, outcomes: Sequence[_Outcome]) -> None:
        write_atomic(self._path, "\n".join(json.dumps(asdict(outcome)) for outcome in outcomes).encode())


def _outcome_from(line: str) -> _Outcome | None:
    try:
        values = json.loads(line)
        return _Outcome(
            str(values["source"]),
            str(values["stamp"]),
            tuple(entry_from(rig) for rig in values["rigs"]),
            tuple(Refusal(one["file"], one["reason"]) for one in values["refused"]),
        )
    except (ValueError, LookupError, TypeError):
        return None


def _stamp(path: Path, suggested: str, settings: PrepareSettings) -> str:
    """Changes when the file (or a RigNet text's mesh), its name or what it is prepared with changes."""
    files = [path]
    if path.suffix.lower() == ".txt":
        with suppress(MeshError):  # The text will be refused for a mesh that is not there.
            files.append(rignet_mesh(path))
    states = [(status.st_size, status.st_mtime_ns) for status in (file.stat() for file in files)]
    return repr((VERSION, states, suggested, settings.class_name, asdict(settings.limits)))


def _digest(rigged: RiggedMesh) -> str:
    digest = hashlib.sha256()
    mesh, rig = rigged.mesh, rigged.rig
    for array in (mesh.vertices, mesh.faces, rig.joints, rig.parents, rig.weights):
        digest.update(repr(array.shape).encode() + array.tobytes())
    return digest.hexdigest()


def _clean(name: str) -> str:
    """A file name for every system: letters, digits, "_", "-" and ".", not too long."""
    clean = re.sub(r"[^A-Za-z0-9_.-]+", "_", name).lstrip(".") or "rig"
    if len(clean) > 100:
        clean = f"{clean[:88]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return clean


def _unique(name: str, taken: set[str]) -> str:
    """The name, or with "_2", "_3", …; file systems may not tell capitals apart."""
    unique, number = name, 2
    while unique.casefold() in taken:
        unique, number = f"{name}_{number}", number + 1
    return unique


if __name__ == "__main__":
    sys.exit(main())
