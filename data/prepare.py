"""`python -m data.prepare IN… --out DIR`: converts rigs of any format to clean NPZ files and a manifest."""

import argparse
import hashlib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path

from tqdm import tqdm

from data.formats.helper_joints import Pruned, without_helpers
from data.formats.load import GLTF_SUFFIXES, Refusal
from data.formats.rig_formats import RigLimits, find_rigs, read_rigs, rigs_passed_over
from data.formats.rig_npz import RiggedMesh, write_rig_npz
from data.formats.rignet_text import rignet_mesh
from data.mesh import MeshError, UpAxis
from data.sets.given_split import HELD_OUT, held_out_names
from data.sets.grouped_split import split_groups
from data.sets.groups import Groups, read_groups
from data.sets.journal import Journal, Outcome
from data.sets.prepared import (
    RIGS,
    SPLITS,
    VERSION,
    Manifest,
    PreparedEntry,
    read_manifest,
    write_manifest,
)

SHOWN_REFUSALS = 20
# Rigs with more joints than this are refused before pruning.
MAX_UNPRUNED = 2048


@dataclass(frozen=True)
class PrepareSettings:
    """How to prepare rigs.

    `eval_share` of the rigs (at least one if it is above 0 and there are two) is held out by a hash of
    (seed, name), or of (seed, group) if there are `groups`; then whole groups are held out. `class_name`
    labels all rigs; None keeps the label of their format. `prune`: remove joints that are not ground truth
    (see `without_helpers`), with `keep_ends` all but unweighted end joints. `up`: the axis that points up in
    NPZ and RigNet files (see `read_rigs`). `splits`: the split of each rig, "train" or one of
    HELD_OUT, instead of a random one. `skip`: patterns of names of files to skip. Raises MeshError if
    `eval_share` is not in [0, 1), a limit is not above 0, or `class_name` is empty.
    """

    eval_share: float = 0.05
    seed: int = 0
    class_name: str | None = None
    limits: RigLimits = field(default_factory=RigLimits)
    prune: bool = True
    keep_ends: bool = False
    groups: Groups | None = None
    up: UpAxis | None = None
    splits: Groups | None = None
    skip: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.eval_share < 1:
            raise MeshError(f"--eval {self.eval_share}: the held-out share must be at least 0 and below 1")
        for option, value in (
            ("--max-faces", self.limits.max_faces),
            ("--max-joints", self.limits.max_joints),
            ("--max-megabytes", self.limits.max_npz_bytes),
        ):
            if value < 1:
                raise MeshError(f"{option} {value}: no rig could pass; use at least 1")
        if self.class_name is not None and not self.class_name.strip():
            raise MeshError("--class is empty; pass a name, or omit it to keep each format's label")


def prepare(
    inputs: Sequence[str | Path],
    out: str | Path,
    settings: PrepareSettings | None = None,
    progress: Callable[[Iterable[Path]], Iterable[Path]] = iter,
) -> Manifest:
    """Prepare all rigs that match `inputs` (see `find_rigs`) in the folder `out`; return its manifest.

    Every usable rig becomes `rigs/<name>.npz` (see `write_rig_npz`); names derive from the path below the
    input folder and are unique. A duplicate of an earlier rig is refused because it could end up on both
    sides of the split. Sources that have not changed since an earlier run with the same settings are not
    read again, so an interrupted run resumes. The folder always reflects the last run: rigs of other
    sources are removed. `manifest.json` is written last.
    Raises MeshError if an input or a pattern of `skip` matches no file, no rig is usable (with the reasons),
    no rig has a group, one has no or an unknown split, the split divides a group, or `up` applies to no file;
    OSError if the folder cannot be written.
    """
    settings, out = settings or PrepareSettings(), Path(out)
    if out.exists() and not out.is_dir():
        raise MeshError(f"{out}: this is a file; pass a folder for the prepared rigs")
    sources = _sources(inputs, out, settings.skip)
    if settings.up == "z" and all(path.suffix.lower() in GLTF_SUFFIXES for path in sources):
        raise MeshError("--up z: all files are glTF, which is y-up by its standard; omit --up")
    (out / RIGS).mkdir(parents=True, exist_ok=True)
    journal = Journal(out)
    earlier = {rig.file for outcome in journal.outcomes.values() for rig in outcome.rigs}
    with suppress(MeshError):  # Missing in a first run; a damaged one is replaced.
        earlier |= {rig.file for rig in read_manifest(out).rigs}
    known = {
        path: outcome
        for path in sources
        if (outcome := journal.outcomes.get(str(path))) is not None
        and outcome.rigs  # Sources without usable rigs are tried again,
        and path.suffix.lower() != ".gltf"  # and so is .gltf, whose buffers may change in other files.
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
            f"{', '.join(map(str, inputs))}: none of the {len(sources)} files contains a usable rig; fix or "
            f"replace them:{reasons}"
        )
    write_manifest(out, manifest)
    current = {rig.file for rig in manifest.rigs}
    journal.keep(outcomes)
    for file in earlier - current:
        (out / file).unlink(missing_ok=True)
    return manifest


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns exit code 0: done, 1: I/O error, 2: nothing usable or bad input, 130: Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m data.prepare", description=__doc__)
    parser.add_argument(
        "inputs",
        nargs="+",
        metavar="IN",
        help="files, folders or quoted patterns: skinned GLB, NPZ, UniRig raw_data.npz, Articulation-XL NPZ, "
        "RigNet text",
    )
    parser.add_argument("--out", required=True, metavar="DIR", help="output folder for the prepared rigs")
    parser.add_argument(
        "--eval",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="held-out share for evaluation (default: 0.05)",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the train/eval split (default: 0)")
    parser.add_argument("--class", dest="class_name", metavar="NAME", help="class label for all rigs")
    parser.add_argument(
        "--group",
        metavar="GROUPS",
        help="keep related rigs on one side of the split: FIELD:FILE (a field of a JSON or CSV file that "
        "lists the rigs, such as family:MANIFEST.json), FILE (rig and group), folder or class",
    )
    parser.add_argument(
        "--split",
        metavar="SPLIT",
        help=f"take each rig's split, train or {', '.join(HELD_OUT)}, from a file (FIELD:FILE or FILE, as "
        "for --group) instead of --eval, such as split:MANIFEST.json",
    )
    parser.add_argument(
        "--skip",
        action="append",
        default=[],
        metavar="PATTERN",
        help="skip files whose name matches the pattern, such as 'hand_*'; may be repeated",
    )
    parser.add_argument(
        "--prune",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="remove joints that are not ground truth: IK targets, poles and ends without weight, repeated "
        "joints, joints far outside the mesh (default: on)",
    )
    parser.add_argument(
        "--keep-ends",
        action="store_true",
        help="do not prune single end joints without weight, which give the last bones their length",
    )
    parser.add_argument(
        "--up",
        choices=("y", "z"),
        help="axis that points up in NPZ and RigNet files; z turns them to y-up (default: y)",
    )
    limits = RigLimits()
    parser.add_argument(
        "--max-faces",
        type=int,
        default=limits.max_faces,
        help=f"maximum faces per mesh (default: {limits.max_faces})",
    )
    parser.add_argument(
        "--max-joints",
        type=int,
        default=limits.max_joints,
        help=f"maximum joints per skeleton (default: {limits.max_joints})",
    )
    parser.add_argument(
        "--max-megabytes",
        type=int,
        default=limits.max_npz_bytes // 2**20,
        help=f"maximum unpacked size of an NPZ file in MiB (default: {limits.max_npz_bytes // 2**20})",
    )
    arguments = parser.parse_args(argv)
    try:
        settings = PrepareSettings(
            arguments.eval,
            arguments.seed,
            arguments.class_name,
            replace(
                limits,
                max_faces=arguments.max_faces,
                max_joints=arguments.max_joints,
                max_npz_bytes=arguments.max_megabytes * 2**20,
            ),
            arguments.prune,
            arguments.keep_ends,
            read_groups(arguments.group) if arguments.group is not None else None,
            arguments.up,
            read_groups(arguments.split, "--split") if arguments.split is not None else None,
            tuple(arguments.skip),
        )
        manifest = prepare(
            arguments.inputs,
            arguments.out,
            settings,
            lambda files: tqdm(files, "prepare", unit="file", file=sys.stderr),
        )
    except MeshError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except OSError as problem:
        print(f"failed: {problem}; fix the cause and run the command again", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; run the same command again to resume", file=sys.stderr)
        return 130
    for line in (*rigs_passed_over(arguments.inputs), *unknown_entries(manifest, settings)):
        print(f"note: {line}", file=sys.stderr)
    _report(manifest, arguments.out, settings)
    return 0


def _report(manifest: Manifest, out: str, settings: PrepareSettings) -> None:
    if manifest.refused:
        print(f"refused {len(manifest.refused)} files or rigs:", file=sys.stderr)
        for refusal in manifest.refused[:SHOWN_REFUSALS]:
            print(f"  {refusal}", file=sys.stderr)
        if len(manifest.refused) > SHOWN_REFUSALS:
            print(f"  … see {out}/manifest.json for all of them", file=sys.stderr)
    held_out = sum(rig.split == "eval" for rig in manifest.rigs)
    repaired = sum(bool(rig.notes) for rig in manifest.rigs)
    print(
        f"{len(manifest.rigs)} rigs in {out}: {len(manifest.rigs) - held_out} for training, "
        f"{held_out} held out; {repaired} repaired"
    )
    if settings.prune:
        _report_pruned(manifest)
    if settings.groups is not None:
        _report_groups(manifest, settings.groups, given=settings.splits is not None)


def _report_pruned(manifest: Manifest) -> None:
    counts = manifest.pruned
    if not counts.total:
        print("no helper joints found")
        return
    rigs = sum(rig.pruned.total > 0 for rig in manifest.rigs)
    print(
        f"removed {counts.total} helper joints from {rigs} rigs: {counts.ends} ends and {counts.controls} "
        f"controls without weight, {counts.repeated} repeated, {counts.far} far outside the mesh"
    )


def _report_groups(manifest: Manifest, groups: Groups, given: bool) -> None:
    """Print how the split treats the groups; `given`: it comes from a file, not from the groups."""
    sides = {side: {rig.group for rig in manifest.rigs if rig.split == side and rig.group} for side in SPLITS}
    print(f"{groups.label}: {len(sides['train'])} groups for training, {len(sides['eval'])} held out")
    if given:
        return
    alone = [rig.name for rig in manifest.rigs if rig.group is None]
    if alone:
        shown = ", ".join(alone[:SHOWN_REFUSALS]) + (", …" if len(alone) > SHOWN_REFUSALS else "")
        print(f"{len(alone)} rigs have no group and were split one by one: {shown}", file=sys.stderr)
    if len(sides["train"] | sides["eval"]) + len(alone) == 1 < len(manifest.rigs):
        print("all rigs are in one group, so none is held out; choose other groups", file=sys.stderr)


def _sources(inputs: Sequence[str | Path], out: Path, skip: Sequence[str]) -> dict[Path, str]:
    """The files, sorted, with a rig name derived from each path, without those in `out` and in `skip`."""
    inside = out.resolve()
    suggested: dict[Path, str] = {}
    unused = set(skip)
    for one in inputs:
        files = [file for file in find_rigs(one) if not file.resolve().is_relative_to(inside)]
        if not files:
            if lines := rigs_passed_over(one):
                raise MeshError("; ".join(lines))
            raise MeshError(
                f"{one}: no rig files found; check the path or pattern (quote patterns in the shell)"
            )
        folder = Path(one).expanduser()
        for file in files:
            if matching := {pattern for pattern in skip if fnmatch(file.name, pattern)}:
                unused -= matching
                continue
            below = file.relative_to(folder) if folder.is_dir() else Path(file.name)
            parts = below.with_suffix("").parts
            if file.name == "raw_data.npz":
                # UniRig names the folder after the rig, not the file.
                parts = parts[:-1] or (file.resolve().parent.name,)
            suggested.setdefault(file, "__".join(parts))
    if unused:
        raise MeshError(f"--skip {min(unused)!r}: no file matches; correct the pattern or omit it")
    if not suggested:
        raise MeshError("the patterns to skip match every file, so no rig is left; omit one of them")
    return dict(sorted(suggested.items()))


def _prepare_source(
    path: Path,
    suggested: str,
    out: Path,
    settings: PrepareSettings,
    names: set[str],
    digests: dict[str, str],
) -> Outcome:
    """Read one file and write its rigs; add them to `names` and `digests`."""
    stamp = _stamp(path, suggested, settings)
    rigs: list[PreparedEntry] = []
    refused: list[Refusal] = []
    limits = settings.limits
    # With pruning, the joints that remain are limited.
    reading = replace(limits, max_joints=max(limits.max_joints, MAX_UNPRUNED)) if settings.prune else limits
    for item in read_rigs(path, reading, settings.up):
        if isinstance(item, Refusal):
            refused.append(item)
            continue
        rigged, pruned = item.rigged, Pruned()
        if settings.prune:
            rig, pruned = without_helpers(rigged.mesh, rigged.rig, settings.keep_ends)
            rigged = replace(rigged, rig=rig)
            if len(rig.joints) > limits.max_joints:
                reason = (
                    f"the rig has {len(rig.joints)} joints after pruning, over the limit of "
                    f"{limits.max_joints}; simplify it or raise the limit"
                )
                refused.append(Refusal(rigged.source, reason))
                continue
        digest = _digest(rigged)
        if digest in digests:
            refused.append(Refusal(rigged.source, f"duplicate of {digests[digest]!r}; remove one of them"))
            continue
        full_name = f"{suggested}_{item.part}" if item.part else suggested
        name = _unique(_clean(full_name), names)
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
                pruned=pruned,
                part=item.part,
            )
        )
    return Outcome(str(path), stamp, tuple(rigs), tuple(refused))


def _split(outcomes: Sequence[Outcome], settings: PrepareSettings) -> Manifest:
    """The manifest of all outcomes, with each rig assigned to "train" or "eval"."""
    rigs = [rig for outcome in outcomes for rig in outcome.rigs]
    refused = tuple(refusal for outcome in outcomes for refusal in outcome.refused)
    count = 0
    if settings.eval_share > 0 and len(rigs) > 1:
        count = min(max(1, round(settings.eval_share * len(rigs))), len(rigs) - 1)
    groups = settings.groups.of_all(rigs) if settings.groups is not None else {}
    if settings.splits is not None:
        held_out = held_out_names(rigs, settings.splits, groups)
    else:
        held_out = {rig.name for rig in split_groups(rigs, groups, count, settings.seed)[1]}
    placed = tuple(
        replace(rig, split="eval" if rig.name in held_out else "train", group=groups.get(rig.name))
        for rig in rigs
    )
    return Manifest(settings.seed, placed, refused)


def unknown_entries(manifest: Manifest, settings: PrepareSettings) -> list[str]:
    """A line for each file of groups or splits with entries that name neither a rig nor a skipped file."""
    lines = []
    for groups in (settings.groups, settings.splits):
        if groups is None:
            continue
        unknown = [
            entry
            for entry in groups.unknown(manifest.rigs, [refusal.file for refusal in manifest.refused])
            if not any(fnmatch(Path(entry).name, pattern) for pattern in settings.skip)
        ]
        if unknown:
            shown = ", ".join(unknown[:3]) + (", …" if len(unknown) > 3 else "")
            lines.append(
                f"{groups.label}: {len(unknown)} of {len(groups.entries)} entries name no rig: {shown}"
            )
    return lines


def _stamp(path: Path, suggested: str, settings: PrepareSettings) -> str:
    """A value that changes with the file (or a RigNet text's mesh), its name and the settings."""
    files = [path]
    if path.suffix.lower() == ".txt":
        with suppress(MeshError):  # A text whose mesh is missing is refused later.
            files.append(rignet_mesh(path))
    states = [(status.st_size, status.st_mtime_ns) for status in (file.stat() for file in files)]
    cleaning = (settings.prune, settings.keep_ends, settings.up)
    return repr((VERSION, states, suggested, settings.class_name, asdict(settings.limits), cleaning))


def _digest(rigged: RiggedMesh) -> str:
    """SHA-256 of mesh, skeleton and weights, in hexadecimal."""
    digest = hashlib.sha256()
    mesh, rig = rigged.mesh, rigged.rig
    for array in (mesh.vertices, mesh.faces, rig.joints, rig.parents, rig.weights):
        digest.update(repr(array.shape).encode() + array.tobytes())
    return digest.hexdigest()


def _clean(name: str) -> str:
    """A portable file name: letters, digits, "_", "-" and ".", at most 100 characters."""
    clean = re.sub(r"[^A-Za-z0-9_.-]+", "_", name).lstrip(".") or "rig"
    if len(clean) > 100:
        clean = f"{clean[:88]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return clean


def _unique(name: str, taken: set[str]) -> str:
    """The name, with "_2", "_3", … if taken; compared without case because some file systems ignore it."""
    unique, number = name, 2
    while unique.casefold() in taken:
        unique, number = f"{name}_{number}", number + 1
    return unique


if __name__ == "__main__":
    sys.exit(main())
