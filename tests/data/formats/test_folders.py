"""Which files of a folder are listed, and how the others are counted."""

from pathlib import Path

import pytest

from data.formats.load import find_meshes, meshes_passed_over
from data.formats.rig_formats import find_rigs, rigs_passed_over


def filled(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def test_files_of_other_formats_are_counted_by_suffix_with_the_fix(tmp_path: Path) -> None:
    filled(tmp_path, "a.glb", "b.BLEND", "c/d.blend", "e.dae", "f.zip", "g.vrm", "h.obj")
    assert [path.name for path in find_meshes(tmp_path)] == ["a.glb", "g.vrm", "h.obj"]
    assert meshes_passed_over(tmp_path) == [
        f"{tmp_path}: passed over 4 files (2 .blend, 1 .dae, 1 .zip); convert 3D files to GLB, unpack "
        "archives"
    ]


def test_companions_of_meshes_do_not_count(tmp_path: Path) -> None:
    filled(tmp_path, "a.gltf", "a.bin", "a.png", "a.JPG", "b.obj", "b.mtl", "LICENSE", "readme.txt", "x.json")
    assert meshes_passed_over(tmp_path) == []
    assert meshes_passed_over([tmp_path / "a.gltf", str(tmp_path / "*.obj"), tmp_path / "missing"]) == []


def test_hidden_files_are_not_read_and_count_if_they_would_be(tmp_path: Path) -> None:
    folder = filled(tmp_path / ".home", "a.glb", "._a.glb", ".git/b.glb", ".DS_Store", ".cache/x.lock")
    assert find_meshes(folder) == [folder / "a.glb"]  # hidden below the given folder, not above it
    assert meshes_passed_over(folder) == [
        f"{folder}: passed over 2 files (2 hidden); rename hidden files that you need"
    ]


def test_each_folder_is_counted_once(tmp_path: Path) -> None:
    one, two = filled(tmp_path / "one", "a.usdz"), filled(tmp_path / "two", "b.npz")
    assert meshes_passed_over([one, two, str(one)]) == [
        f"{one}: passed over 1 file (1 .usdz); convert 3D files to GLB",
        f"{two}: passed over 1 file (1 .npz); prepare NPZ rigs with `python -m data.prepare`",
    ]


@pytest.mark.parametrize("with_text", [True, False])
def test_the_obj_of_a_rignet_text_is_not_passed_over(with_text: bool, tmp_path: Path) -> None:
    filled(tmp_path, "rig.obj", "other.stl", "notes.txt", "c.vrm")
    (tmp_path / "notes.txt").write_text("Some notes.\n")
    if with_text:
        (tmp_path / "rig.txt").write_text("joints a 0 0 0\n")
    assert [path.name for path in find_rigs(tmp_path)] == ["c.vrm", *(["rig.txt"] if with_text else [])]
    shown = "1 file (1 .stl)" if with_text else "2 files (1 .obj, 1 .stl)"
    assert rigs_passed_over(tmp_path) == [
        f"{tmp_path}: passed over {shown}; bind meshes to a skeleton and export GLB"
    ]


def test_a_text_file_that_is_an_lfs_pointer_is_listed_as_a_rig(tmp_path: Path) -> None:
    (tmp_path / "rig.txt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n")
    assert [path.name for path in find_rigs(tmp_path)] == ["rig.txt"]
