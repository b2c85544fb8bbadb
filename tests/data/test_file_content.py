"""Stand-ins for files and formats under a wrong suffix, recognised by their first bytes."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.file_content import HEAD_BYTES, mesh_suffix, stand_in, stand_in_at
from data.formats.load import load_mesh
from data.mesh import MeshError
from tests.data.mesh_files import exported

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
PAGE = b'<!DOCTYPE html>\n<html lang="en"><head><title>Sign in</title></head></html>\n'
POINTER = "this is a Git LFS pointer, not the file itself; run `git lfs pull` in its repository"
WEB_PAGE = "this is an HTML page, not the file itself; download the raw file again"
REPLY = "this is a server's error reply, not the file itself; download the file again"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (LFS, POINTER),
        (LFS.replace(b"\n", b"\r\n"), POINTER),
        (b"version https://hawser.github.com/spec/v1\noid sha256:4d7a\n", POINTER),
        (LFS.decode().encode("utf-16"), POINTER),
        (b"\xef\xbb\xbf" + LFS, POINTER),
        (PAGE, WEB_PAGE),
        (PAGE.upper(), WEB_PAGE),
        (b"\n\n  <!-- saved from url=(0042)https://example.org/ -->\r\n" + PAGE, WEB_PAGE),
        (b'<?xml version="1.0" encoding="UTF-8"?>\n' + PAGE, WEB_PAGE),
        (b"<html>\r\n<head><title>404 Not Found</title></head>", WEB_PAGE),
        (b"<center><h1>502 Bad Gateway</h1></center>", WEB_PAGE),
        (PAGE.decode().encode("utf-16"), WEB_PAGE),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', REPLY),
        (b"404: Not Found", REPLY),
        (b"Entry not found\n", REPLY),
        (b"", None),
        (b"v 0 0 0\n", None),
        (b"version of a comment", None),
        (b"# see <html>\nv 0 0 0\n", None),
        (b'<?xml version="1.0"?><COLLADA version="1.4.1">', None),
        (b"glTF\x02\0\0\0", None),
    ],
)
def test_what_stands_in_a_files_place(content: bytes, expected: str | None) -> None:
    assert stand_in(content) == expected


@given(st.binary(max_size=300))
def test_any_bytes_can_be_examined(content: bytes) -> None:
    assert stand_in(b"glTF" + content) is None
    stand_in(content)


def test_the_message_starts_with_the_file(tmp_path: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(LFS)
    assert stand_in_at(tmp_path / "model.ckpt") == f"{tmp_path}/model.ckpt: {POINTER}"
    (tmp_path / "large.bin").write_bytes(bytes(3 * HEAD_BYTES) + LFS)
    assert stand_in_at(tmp_path / "large.bin") is None


@pytest.mark.parametrize("suffix", [".glb", ".gltf", ".vrm", ".obj", ".ply", ".stl", ".off"])
@pytest.mark.parametrize(("content", "expected"), [(LFS, POINTER), (PAGE, WEB_PAGE)])
def test_every_mesh_format_reports_a_stand_in(
    suffix: str, content: bytes, expected: str, tmp_path: Path
) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(MeshError) as caught:
        load_mesh(path)
    assert str(caught.value) == f"{path}: {expected}"


@pytest.mark.parametrize("real", ["glb", "obj", "ply", "stl", "stl_ascii", "off"])
@pytest.mark.parametrize("suffix", [".glb", ".gltf", ".vrm", ".obj", ".ply", ".off", ".stl"])
def test_a_mesh_is_read_by_its_content_whatever_its_suffix(real: str, suffix: str, tmp_path: Path) -> None:
    content = exported(real)
    right, wrong = tmp_path / f"right.{real.removesuffix('_ascii')}", tmp_path / f"wrong{suffix}"
    right.write_bytes(content)
    wrong.write_bytes(content)
    if real == "stl" and suffix != ".stl":  # binary STL has no signature
        assert mesh_suffix(wrong, content[:HEAD_BYTES]) == suffix
        return
    expected, found = load_mesh(right), load_mesh(wrong)
    assert (found.vertices == expected.vertices).all()
    assert (found.faces == expected.faces).all()


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (b"Kaydara FBX Binary  \0\x1a\0", "this is an FBX file under another name; convert it to GLB"),
        (b"; FBX 7.7.0 project file\n", "this is an FBX file under another name; convert it to GLB"),
        (b"BLENDER-v300", "this is a Blender file under another name; convert it to GLB"),
        (b"PXR-USDC\0", "this is a USD file under another name; convert it to GLB"),
        (b"PK\x03\x04\x14\0", "this is a ZIP archive under another name; unpack it"),
        (b"\x1f\x8b\x08", "this is a gzip archive under another name; unpack it"),
    ],
)
def test_other_formats_under_a_mesh_suffix_are_named(start: bytes, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "model.glb"
    path.write_bytes(start)
    with pytest.raises(MeshError) as caught:
        load_mesh(path)
    assert str(caught.value).startswith(f"{path}: {expected}")


def test_a_binary_stl_whose_header_reads_like_an_obj_stays_an_stl(tmp_path: Path) -> None:
    content = b"o model\nv 1\n".ljust(80, b" ") + exported("stl")[80:]
    (tmp_path / "model.stl").write_bytes(content)
    assert load_mesh(tmp_path / "model.stl").faces.shape == (320, 3)
