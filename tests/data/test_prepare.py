"""Preparing rigs: what is written, refused and split, resuming, and the command's exit codes."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

import data.prepare as module
from data.creatures import make_creature
from data.formats.rig_formats import RigLimits
from data.formats.rig_npz import RiggedMesh, read_rig_npz, write_rig_npz
from data.mesh import MeshError
from data.prepare import PrepareSettings, main, prepare
from data.rig import Rig
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

    def counted(path: Path, limits: object) -> object:
        reads.append(path.parent.name + "/" + path.name)
        return original(path, limits)  # type: ignore[arg-type]

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
    assert shown.out == f"4 rigs in {out}: 3 for training, 1 held out; 0 repaired\n"
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


def test_notes_on_reading_reach_the_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A part that no joint moves is named there; files that are no rigs are counted on standard error."""
    source = tmp_path / "in"
    source.mkdir()
    case = Path(__file__).parent / "gltf" / "cases" / "unskinned_part.glb"
    (source / "hat.vrm").write_bytes(case.read_bytes())
    (source / "face.png").write_bytes(b"x")
    rignet(source)
    assert main([str(source), "--out", str(source / "out"), "--eval", "0"]) == 0
    assert f"note: {source}: passed over 1 .png\n" in capsys.readouterr().err
    notes = {rig.name: rig.notes for rig in read_manifest(source / "out").rigs}
    assert notes["hat"] == ("1 mesh that no joint moves excluded from the rig: hat (36 vertices)",)
