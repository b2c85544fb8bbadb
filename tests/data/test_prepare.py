"""Preparing rigs: what is written, refused and split, resuming, and the command's exit codes."""

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

import data.prepare as module
from data.creatures import make_creature
from data.formats.helper_joints import Pruned
from data.formats.rig_formats import RigLimits
from data.formats.rig_npz import RiggedMesh, read_rig_npz, write_rig_npz
from data.gltf.skinned import write_skinned_glb
from data.mesh import Mesh, MeshError
from data.prepare import PrepareSettings, main, prepare
from data.rig import Rig
from data.sets.groups import read_groups
from data.sets.prepared import MANIFEST, PreparedRigs, read_manifest
from tests.data.rig_files import rignet, write_unirig


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted((folder / "rigs").iterdir())}


def test_what_is_written(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    manifest = prepare([raw], out, PrepareSettings(eval_share=0.25, class_name="articulation"))
    assert read_manifest(out) == manifest
    assert [rig.name for rig in manifest.rigs] == ["cats__a", "cats__b", "dogs__a", "wolf_"]
    assert sorted(contents(out)) == [f"{rig.name}.npz" for rig in manifest.rigs]
    assert [Path(refusal.file).name for refusal in manifest.refused] == ["cut.glb", "raw_data.npz"]
    assert "NaN" in manifest.refused[1].reason
    assert [rig.split for rig in manifest.rigs].count("eval") == 1
    for entry, seed in zip(manifest.rigs, (0, 1, 2, 4), strict=True):
        rigged, creature = read_rig_npz(out / entry.file), make_creature(seed)
        assert (rigged.name, rigged.class_name) == (entry.name, "articulation")
        assert entry.joints == len(creature.rig.joints) == len(rigged.rig.joints)
        assert (entry.vertices, entry.faces) == (len(rigged.mesh.vertices), len(rigged.mesh.faces))
        np.testing.assert_allclose(rigged.rig.joints, creature.rig.joints, atol=1e-5)
        assert rigged.source == entry.source != ""
    assert not list(out.rglob("*.tmp"))


def test_the_same_input_gives_the_same_files(raw: Path, tmp_path: Path) -> None:
    first, second = prepare([raw], tmp_path / "a"), prepare([raw], tmp_path / "b")
    assert first == second
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    held_out = {
        seed: [
            rig.name
            for rig in prepare([raw], tmp_path / "a", PrepareSettings(0.25, seed)).rigs
            if rig.split == "eval"
        ]
        for seed in range(6)
    }
    assert len({tuple(names) for names in held_out.values()}) > 1


def test_shares(raw: Path, tmp_path: Path) -> None:
    for share, held_out in ((0, 0), (0.01, 1), (0.5, 2), (0.99, 3)):
        manifest = prepare([raw], tmp_path / "out", PrepareSettings(share))
        assert sum(rig.split == "eval" for rig in manifest.rigs) == held_out
    one = prepare([raw / "cats" / "a" / "raw_data.npz"], tmp_path / "one", PrepareSettings(0.5))
    assert [(rig.name, rig.split) for rig in one.rigs] == [("a", "train")]
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(MeshError, match="the held-out share must be"):
            PrepareSettings(share)


class Stop(Exception):  # noqa: N818 (no error: a stand-in for Ctrl-C)
    pass


def stop_after(count: int) -> object:
    def progress(files: Iterable[Path]) -> Iterator[Path]:
        for number, file in enumerate(files):
            if number == count:
                raise Stop
            yield file

    return progress


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    reads: list[str] = []
    original = module.read_rigs

    def counted(path: Path, *settings: object) -> object:
        reads.append(path.parent.name + "/" + path.name)
        return original(path, *settings)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "read_rigs", counted)
    return reads


def test_an_interrupted_run_resumes(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = prepare([raw], tmp_path / "whole")
    out = tmp_path / "out"
    with pytest.raises(Stop):
        prepare([raw], out, progress=stop_after(2))  # type: ignore[arg-type]
    assert not (out / MANIFEST).exists()
    # A truncated line of the journal is ignored.
    with (out / ".prepare.jsonl").open("a") as file:
        file.write('\n{"source": "x", "st')
    reads = count_reads(monkeypatch)
    assert prepare([raw], out) == whole
    assert contents(out) == contents(tmp_path / "whole")
    # Sorted: cats/a and cats/b were prepared before; all others, also refused ones, are read.
    assert reads == ["raw/cut.glb", "a/raw_data.npz", "nan/raw_data.npz", "raw/wolf é.glb"]


def test_only_changes_are_read_again(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    before = prepare([raw], out)
    reads = count_reads(monkeypatch)
    assert prepare([raw], out) == before
    assert reads == ["raw/cut.glb", "nan/raw_data.npz"], "only refused files are tried again"
    reads.clear()
    write_unirig(raw / "dogs" / "a", 7)
    os.utime(raw / "dogs" / "a" / "raw_data.npz", ns=(1, 1))
    write_unirig(raw / "nan", 3)
    (out / "rigs" / "cats__a.npz").unlink()
    changed = prepare([raw], out)
    assert sorted(reads) == ["a/raw_data.npz", "a/raw_data.npz", "nan/raw_data.npz", "raw/cut.glb"]
    assert [rig.name for rig in changed.rigs] == ["cats__a", "cats__b", "dogs__a", "nan", "wolf_"]
    assert changed.rigs[2].digest != before.rigs[2].digest
    np.testing.assert_allclose(
        read_rig_npz(out / "rigs" / "dogs__a.npz").rig.joints, make_creature(7).rig.joints, atol=1e-5
    )
    reads.clear()
    labelled = prepare([raw], out, PrepareSettings(class_name="rignet"))
    assert len(reads) == 6, "a new label changes every file"
    assert {read_rig_npz(out / rig.file).class_name for rig in labelled.rigs} == {"rignet"}


def test_rigs_of_other_sources_are_removed(raw: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    prepare([raw], out)
    with pytest.raises(MeshError, match="none of"):
        prepare([raw], out, PrepareSettings(limits=RigLimits(max_joints=1)))
    (out / "rigs" / "mine.txt").write_text("not ours")
    manifest = prepare([raw / "cats"], out)
    assert [rig.name for rig in manifest.rigs] == ["a", "b"]
    assert sorted(contents(out)) == ["a.npz", "b.npz", "mine.txt"]


def test_duplicates_are_refused_and_names_are_unique(raw: Path, tmp_path: Path) -> None:
    write_unirig(tmp_path / "more" / "Cats" / "A", 8)
    write_unirig(tmp_path / "more" / "copy", 1)
    manifest = prepare([raw / "cats", raw, tmp_path / "more"], tmp_path / "out", PrepareSettings(0))
    names = [rig.name for rig in manifest.rigs]
    assert len({name.casefold() for name in names}) == len(names) == 5
    duplicates = [refusal for refusal in manifest.refused if "duplicate of" in refusal.reason]
    assert len(duplicates) == 1
    assert {Path(duplicates[0].file).parent.name, duplicates[0].reason.split("'")[1]} <= {
        "copy",
        "b",
        "copy_2",
    }


def test_prepared_folders_are_inputs_and_the_output_is_not(raw: Path, tmp_path: Path) -> None:
    prepare([raw], tmp_path / "a")
    merged = prepare([tmp_path / "a" / "rigs"], tmp_path / "b", PrepareSettings(0))
    assert [rig.name for rig in merged.rigs] == ["cats__a", "cats__b", "dogs__a", "wolf_"]
    # An output folder inside the input folder is not searched for inputs.
    inside = prepare([raw], raw / "out")
    assert prepare([raw], raw / "out") == inside


def test_many_rigs_in_one_file(tmp_path: Path) -> None:
    entries = np.empty(2, dtype=object)
    for number, uuid in enumerate(("../../up", "b")):
        creature = make_creature(number)
        rows, columns = np.nonzero(creature.rig.weights)
        entries[number] = {
            "uuid": uuid,
            "vertices": creature.mesh.vertices,
            "faces": creature.mesh.faces,
            "joints": creature.rig.joints,
            "bones": np.array([[p, j] for j, p in enumerate(creature.rig.parents.tolist()) if p >= 0]),
            "skinning_weights_value": creature.rig.weights[rows, columns],
            "skinning_weights_row": rows,
            "skinning_weights_col": columns,
            "skinning_weights_shape": creature.rig.weights.shape,
        }
    np.savez(tmp_path / "xl.npz", entries)
    manifest = prepare([tmp_path / "xl.npz"], tmp_path / "out", PrepareSettings(0))
    assert [rig.name for rig in manifest.rigs] == ["xl_.._.._up", "xl_b"]
    assert {rig.class_name for rig in manifest.rigs} == {"articulation"}
    assert len(contents(tmp_path / "out")) == 2


def test_long_names_stay_unique(tmp_path: Path) -> None:
    for seed, end in enumerate("ab"):
        write_unirig(tmp_path / "raw" / ("x" * 120 + end), seed)
    names = [rig.name for rig in prepare([tmp_path / "raw"], tmp_path / "out").rigs]
    assert len(set(names)) == 2
    assert all(len(name) < 110 for name in names)


def test_nothing_usable(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(MeshError, match=r"none of the 1 files .*\n  .*nan/raw_data\.npz: .*NaN"):
        prepare([raw / "nan"], tmp_path / "out")
    assert not (tmp_path / "out" / MANIFEST).exists()
    with pytest.raises(MeshError, match="no rig files found; check the path or pattern"):
        prepare([raw, tmp_path / "typo"], tmp_path / "out")
    (tmp_path / "file").write_text("x")
    with pytest.raises(MeshError, match="this is a file; pass a folder"):
        prepare([raw], tmp_path / "file")


def test_the_command(raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert main([str(raw), "--out", out, "--eval", "0.25", "--class", "rignet"]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"4 rigs in {out}: 3 for training, 1 held out; 0 repaired\nno helper joints found\n"
    assert "refused 2 files or rigs:\n" in shown.err
    assert "cut.glb: " in shown.err
    assert "prepare:" in shown.err, "the progress bar"
    assert main([str(raw / "nan"), "--out", str(tmp_path / "none")]) == 2
    assert "error: " in capsys.readouterr().err
    assert main([str(tmp_path / "typo"), "--out", out]) == 2
    assert main([str(raw), "--out", out, "--eval", "2"]) == 2
    assert main([str(raw), "--out", out, "--max-joints", "1"]) == 2
    assert "over the limit of 1;" in capsys.readouterr().err
    assert len(PreparedRigs(out)) == 3, "a failed run does not change the folder"
    with pytest.raises(SystemExit) as stopped:
        main([str(raw)])
    assert stopped.value.code == 2


def test_ctrl_c_and_a_failing_disk(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device", "rigs/x.npz")

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    for call, code, text in (
        (fail, 1, "No space left"),
        (interrupt, 130, "run the same command again to resume"),
    ):
        monkeypatch.setattr(module, "write_rig_npz", call)
        assert main([str(raw), "--out", str(tmp_path / "out")]) == code
        assert text in capsys.readouterr().err


def test_repaired_rigs_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    creature = make_creature(0)
    doubled = Rig(creature.rig.joints, creature.rig.parents, creature.rig.weights * 2, creature.rig.names)
    write_rig_npz(tmp_path / "a.npz", RiggedMesh(creature.mesh, doubled))
    assert main([str(tmp_path / "a.npz"), "--out", str(tmp_path / "out")]) == 0
    assert "1 repaired" in capsys.readouterr().out
    (entry,) = read_manifest(tmp_path / "out").rigs
    assert entry.notes == (f"weights of {len(creature.mesh.vertices)} vertices normalised to sum to 1",)


def with_helpers(seed: int) -> tuple[Mesh, Rig]:
    """A creature with a root at the floor, an end, an IK target, and a copy of joint 1."""
    creature = make_creature(seed)
    joints, parents, weights = creature.rig.joints, creature.rig.parents, creature.rig.weights.copy()
    weights[:, 1] /= 2
    zeros = np.zeros((len(weights), 1), dtype=np.float32)
    count = len(joints)
    rig = Rig(
        np.vstack([[[0, -1, 0]], joints, joints[-1:] * 0.5, [[0, 0, 3]], joints[1:2]]),
        np.concatenate([[-1], parents + 1, [count, 0, 2]]),
        np.hstack([zeros, weights, zeros, zeros, weights[:, 1:2]]),
        ("root", *creature.rig.names, "tip_end", "FootIK", "copy"),
    )
    return creature.mesh, rig


@pytest.fixture
def families(tmp_path: Path) -> Path:
    """Eight rigs with helpers in a folder, c0 to c7, and a manifest with four families of two."""
    (tmp_path / "in").mkdir()
    for seed in range(8):
        mesh, rig = with_helpers(seed)
        write_skinned_glb(tmp_path / "in" / f"c{seed}.glb", mesh, rig)
    entries = [{"file": f"in/c{seed}.glb", "family": f"f{seed // 2}"} for seed in range(8)]
    (tmp_path / "MANIFEST.json").write_text(json.dumps({"files": entries}))
    return tmp_path


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    """`python -m data.prepare` in a process of its own."""
    command = [sys.executable, "-m", "data.prepare", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(module.__file__).parents[1])


def test_helper_joints_are_pruned(families: Path) -> None:
    out = families / "out"
    done = run(families / "in", "--out", out)
    assert done.returncode == 0, done.stderr
    counts = "8 ends and 16 controls without weight, 8 repeated, 0 far outside the mesh"
    assert f"removed 32 helper joints from 8 rigs: {counts}\n" in done.stdout
    manifest = read_manifest(out)
    for seed, entry in enumerate(manifest.rigs):
        creature, rigged = make_creature(seed), read_rig_npz(out / entry.file)
        assert entry.pruned == Pruned(ends=1, controls=2, repeated=1)
        assert rigged.rig.names == creature.rig.names
        assert entry.joints == len(creature.rig.joints)
        np.testing.assert_allclose(rigged.rig.joints, creature.rig.joints, atol=1e-5)
        np.testing.assert_allclose(rigged.rig.weights.sum(axis=1), 1, atol=1e-5)
    assert json.loads((out / MANIFEST).read_text())["pruned"] == asdict(manifest.pruned)
    ends = prepare([families / "in"], out, PrepareSettings(keep_ends=True))
    assert ends.pruned == Pruned(controls=16, repeated=8)
    assert all("tip_end" in read_rig_npz(out / rig.file).rig.names for rig in ends.rigs)
    assert run(families / "in", "--out", out, "--no-prune").returncode == 0
    raw = read_manifest(out)
    assert raw.pruned == Pruned()
    assert [rig.joints for rig in raw.rigs] == [len(make_creature(seed).rig.joints) + 4 for seed in range(8)]


def test_other_cleaning_settings_read_files_again(families: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but the groups, which are assigned when all rigs are known."""
    out = families / "out"
    reads = count_reads(monkeypatch)
    groups = read_groups(f"family:{families / 'MANIFEST.json'}")
    for settings, count in (
        (PrepareSettings(), 8),
        (PrepareSettings(groups=groups, seed=3), 0),
        (PrepareSettings(keep_ends=True), 8),
        (PrepareSettings(prune=False), 8),
        (PrepareSettings(prune=False, up="y"), 8),
    ):
        reads.clear()
        prepare([families / "in"], out, settings)
        assert len(reads) == count


def test_the_limit_counts_the_joints_that_remain(families: Path) -> None:
    most = len(make_creature(0).rig.joints)
    one = families / "in" / "c0.glb"
    assert run(one, "--out", families / "out", "--max-joints", most).returncode == 0
    for options in (("--max-joints", most - 1), ("--no-prune", "--max-joints", most + 3)):
        done = run(one, "--out", families / "none", *options)
        assert done.returncode == 2
        assert f"over the limit of {options[-1]}" in done.stderr


def test_families_stand_on_one_side(families: Path) -> None:
    manifest = families / "MANIFEST.json"
    for share, held_out in ((0.25, 2), (0.5, 4), (0.1, 2), (0.9, 6), (0, 0)):
        done = run(
            families / "in", "--out", families / "out", "--eval", share, "--group", f"family:{manifest}"
        )
        assert done.returncode == 0, done.stderr
        assert f"{held_out} held out; " in done.stdout
        assert f"{4 - held_out // 2} groups for training, {held_out // 2} held out\n" in done.stdout
        rigs = read_manifest(families / "out").rigs
        assert [rig.group for rig in rigs] == [f"f{seed // 2}" for seed in range(8)]
        sides = {(rig.group, rig.split) for rig in rigs}
        assert len(sides) == 4
    # An interrupted run resumes to the same split.
    settings = PrepareSettings(0.5, groups=read_groups(f"family:{manifest}"))
    whole = prepare([families / "in"], families / "whole", settings)
    with pytest.raises(Stop):
        prepare([families / "in"], families / "again", settings, progress=stop_after(5))  # type: ignore[arg-type]
    assert prepare([families / "in"], families / "again", settings) == whole


def test_rigs_without_a_group_are_reported(families: Path) -> None:
    table = families / "groups.csv"
    table.write_text("c0,a\nc1,a\n")
    done = run(families / "in", "--out", families / "out", "--eval", 0.5, "--group", table)
    assert "6 rigs have no group and were split one by one: c2, c3, c4, c5, c6, c7" in done.stderr
    rigs = read_manifest(families / "out").rigs
    assert rigs[0].split == rigs[1].split
    assert [rig.split for rig in rigs].count("eval") == 4
    one = run(families / "in", "--out", families / "out", "--group", "folder")
    assert one.returncode == 0
    assert "all rigs are in one group, so none is held out; choose other groups" in one.stderr


def test_groups_that_cannot_be_used(families: Path) -> None:
    (families / "other.csv").write_text("x.glb,a\n")
    for groups, reason in (
        (f"famly:{families / 'MANIFEST.json'}", "no entry has the field 'famly'; did you mean 'family'?"),
        (f"family:{families / 'none.json'}", "there is no file"),
        (str(families / "other.csv"), "none of the 8 rigs is listed; the file lists 'x.glb'"),
        ("class", "no rig has a class"),
    ):
        done = run(families / "in", "--out", families / "out", "--group", groups)
        assert done.returncode == 2
        assert reason in done.stderr
        assert not (families / "out" / MANIFEST).exists()


def test_z_up_rigs(raw: Path, tmp_path: Path) -> None:
    """UniRig files are turned, the GLB beside them is not."""
    manifest = prepare([raw], tmp_path / "out", PrepareSettings(0, up="z"))
    for entry, seed in zip(manifest.rigs, (0, 1, 2, 4), strict=True):
        joints, creature = read_rig_npz(tmp_path / "out" / entry.file).rig.joints, make_creature(seed)
        turned = creature.rig.joints[:, [0, 2, 1]] * [1, 1, -1]
        np.testing.assert_allclose(joints, creature.rig.joints if seed == 4 else turned, atol=1e-5)
    done = run(raw / "wolf é.glb", "--out", tmp_path / "none", "--up", "z")
    assert done.returncode == 2
    assert "--up z: all files are glTF, which is y-up by its standard; omit --up" in done.stderr


def test_notes_on_reading_reach_the_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A part that no joint moves is named there; files that are no rigs are counted on standard error."""
    source = tmp_path / "in"
    source.mkdir()
    case = Path(__file__).parent / "gltf" / "cases" / "unskinned_part.glb"
    (source / "hat.vrm").write_bytes(case.read_bytes())
    (source / "face.blend").write_bytes(b"x")
    rignet(source)
    assert main([str(source), "--out", str(source / "out"), "--eval", "0"]) == 0
    assert (
        f"note: {source}: passed over 1 file (1 .blend); convert 3D files to GLB\n" in capsys.readouterr().err
    )
    notes = {rig.name: rig.notes for rig in read_manifest(source / "out").rigs}
    assert notes["hat"] == ("excluded 1 mesh that no joint moves from the rig: hat (36 vertices)",)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--eval", "nan"], "--eval nan: the held-out share must be at least 0 and below 1"),
        (["--max-faces", "0"], "--max-faces 0: no rig could pass; use at least 1"),
        (["--max-joints", "-3"], "--max-joints -3: no rig could pass"),
        (["--max-megabytes", "0"], "--max-megabytes 0: no rig could pass"),
        (["--class", " "], "--class is empty"),
    ],
)
def test_options_that_would_refuse_every_rig_or_label_none(tmp_path, capsys, options, message):
    assert main([str(tmp_path), "--out", str(tmp_path / "out"), *options]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------- given splits, files passed over


def listed(families: Path, name: str, splits: list[str | None]) -> Path:
    """A JSON file that gives c0, c1, … their splits."""
    entries = [
        {"file": f"in/c{seed}.glb", "family": f"f{seed // 2}", "split": split}
        for seed, split in enumerate(splits)
    ]
    (families / name).write_text(json.dumps({"files": entries}))
    return families / name


HALF = ["train", "train", "dev", "dev", "train", "train", "test", "val"]


def test_a_file_gives_the_split(families: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = listed(families, "split.json", HALF)
    options = ["--split", f"split:{path}", "--group", f"family:{path}", "--eval", "0.9"]
    assert main([str(families / "in"), "--out", str(families / "out"), *options]) == 0
    rigs = read_manifest(families / "out").rigs
    assert [rig.split for rig in rigs] == ["train" if side == "train" else "eval" for side in HALF]
    assert [rig.group for rig in rigs] == [f"f{seed // 2}" for seed in range(8)]
    printed = capsys.readouterr()
    assert "4 for training, 4 held out" in printed.out
    assert "2 groups for training, 2 held out" in printed.out
    assert "note: --" not in printed.err
    # Folders may be the splits too.
    for name, seeds in (("train", (0, 1)), ("dev", (2,))):
        (families / "sides" / name).mkdir(parents=True)
        for seed in seeds:
            (families / "in" / f"c{seed}.glb").rename(families / "sides" / name / f"c{seed}.glb")
    settings = PrepareSettings(splits=read_groups("folder", "--split"))
    manifest = prepare([families / "sides"], families / "by folder", settings)
    assert {rig.name: rig.split for rig in manifest.rigs} == {
        "dev__c2": "eval",
        "train__c0": "train",
        "train__c1": "train",
    }


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["train"] * 7 + [None], "c7.glb has no split; add it there, or skip the file"),
        (["train"] * 7 + ["held"], "c7.glb has the split 'held'; use train or eval, dev, val, valid,"),
        (["train"] * 7 + ["dev"], "the group 'f3' is on both sides ('c6' for training, 'c7' held out);"),
        ([None] * 8, "no entry has the field 'split'"),
    ],
)
def test_splits_that_cannot_be_used(
    families: Path, capsys: pytest.CaptureFixture[str], splits: list[str | None], message: str
) -> None:
    path = listed(families, "split.json", splits)
    if splits[0] is None:
        path.write_text(path.read_text().replace('"split"', '"side"'))
    options = ["--split", f"split:{path}", "--group", f"family:{path}"]
    assert main([str(families / "in"), "--out", str(families / "out"), *options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {path}: " if splits[0] is None else f"error: --split split:{path}: ")
    assert message in error
    assert not (families / "out" / MANIFEST).exists()


def test_files_are_passed_over(families: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, path = families / "out", listed(families, "split.json", HALF)
    assert main([str(families / "in"), "--out", str(out)]) == 0
    options = ["--skip", "c[0-3].glb", "--skip", "c7*", "--group", f"family:{path}"]
    assert main([str(families / "in"), "--out", str(out), *options]) == 0
    assert [rig.name for rig in read_manifest(out).rigs] == ["c4", "c5", "c6"]
    assert sorted(contents(out)) == ["c4.npz", "c5.npz", "c6.npz"]
    assert "note: --group" not in capsys.readouterr().err  # what is passed over is not unknown
    for patterns, message in (
        (["--skip", "d*"], "error: --skip 'd*': no file matches; correct the pattern or omit it"),
        (["--skip", "c*"], "error: the patterns to skip match every file, so no rig is left; omit one"),
    ):
        assert main([str(families / "in"), "--out", str(out), *patterns]) == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith(message)


def test_entries_that_name_no_rig_are_reported(families: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five of which one is a refused file: that one is known."""
    (families / "in" / "cut.glb").write_bytes(b"glTF")
    table = families / "groups.csv"
    rows = [f"{name},{name[:2]}" for name in ("c0", "in/c1.glb", "gone.glb", "x/lost.glb", "cut.glb")]
    table.write_text("\n".join(["file,family", *rows, "d,d", "e,e"]))
    assert main([str(families / "in"), "--out", str(families / "out"), "--group", str(table)]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: --group")]
    assert notes == [
        f"note: --group {table}: 4 of 7 entries name no rig: gone.glb, x/lost.glb, d, …",
    ]
