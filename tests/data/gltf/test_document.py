"""glTF containers and accessors: every kind is decoded, every damage is refused."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data import MeshError, load_mesh
from tests.data.mesh_files import TRIANGLE, exported, good_glb

pytestmark = pytest.mark.usefixtures("silent")


def test_accessors_of_every_kind(tmp_path: Path, builder: Any) -> None:
    """A strided view, normalised integers, a sparse accessor without a view, a data URI and a side file."""
    corners = np.array(TRIANGLE, dtype=np.float32)
    rows = np.zeros((3, 5), dtype=np.float32)
    rows[:, 1:4] = corners
    view = builder.view(rows.tobytes(), byteStride=20)
    builder.doc["accessors"].append(
        {"bufferView": view, "byteOffset": 4, "componentType": 5126, "count": 3, "type": "VEC3"}
    )
    strided = builder.mesh({"attributes": {"POSITION": 0}})
    # int8 / 127: (127, -127, 0) means (1, -1, 0); -128 is clamped to -1.
    packed = builder.accessor([[127, -127, 0], [-128, 0, 0], [0, 127, 0]], "int8", normalized=True)
    normalised = builder.mesh({"attributes": {"POSITION": packed}})
    builder.doc["accessors"].append(
        {
            "componentType": 5126,
            "count": 3,
            "type": "VEC3",
            "sparse": {
                "count": 2,
                "indices": {
                    "bufferView": builder.view(np.array([1, 2], "u2").tobytes()),
                    "componentType": 5123,
                },
                "values": {"bufferView": builder.view(np.array([[9, 0, 0], [0, 9, 0]], "f4").tobytes())},
            },
        }
    )
    sparse = builder.mesh({"attributes": {"POSITION": len(builder.doc["accessors"]) - 1}})
    for mesh in (strided, normalised, sparse):
        builder.node(root=True, mesh=mesh)
    side = tmp_path / "a b.bin"
    side.write_bytes(bytes(builder.binary))
    expected = [*TRIANGLE, [1, -1, 0], [-1, 0, 0], [0, 1, 0], [0, 0, 0], [9, 0, 0], [0, 9, 0]]
    for path in (
        builder.glb(tmp_path / "a.glb"),
        builder.gltf(tmp_path / "embedded.gltf"),
        builder.gltf(tmp_path / "side.gltf", "a%20b.bin"),
    ):
        mesh = load_mesh(path)
        np.testing.assert_allclose(mesh.vertices / mesh.scale + mesh.centre, expected, atol=1e-6)


def test_the_undamaged_glb_loads(tmp_path: Path, builder: Any) -> None:
    mesh = load_mesh(good_glb(builder).glb(tmp_path / "good.glb"))
    np.testing.assert_allclose(mesh.vertices / mesh.scale + mesh.centre, TRIANGLE)


@pytest.mark.parametrize("extension", ["KHR_draco_mesh_compression", "EXT_meshopt_compression"])
@pytest.mark.parametrize("place", ["extensionsUsed", "extensionsRequired", "inside"])
@pytest.mark.parametrize("suffix", ["glb", "gltf"])
def test_compressed_files_are_refused_by_name(
    tmp_path: Path, builder: Any, extension: str, place: str, suffix: str
) -> None:
    doc = good_glb(builder).doc
    if place != "inside":
        doc[place] = ["KHR_materials_unlit", extension]
    elif "draco" in extension:
        doc["meshes"][0]["primitives"][0]["extensions"] = {extension: {}}
    else:
        doc["bufferViews"][0]["extensions"] = {extension: {}}
    path = getattr(builder, suffix)(tmp_path / f"small.{suffix}")
    scheme = "Draco" if "draco" in extension else "meshopt"
    with pytest.raises(MeshError, match=rf"{scheme}-compressed \({extension}\); export it without") as caught:
        load_mesh(path)
    assert str(caught.value).endswith(f"run: gltf-transform copy {path} {tmp_path}/small_plain.glb")


def damage(path: str, value: Any) -> Any:
    """Set an entry of the document, e.g. "accessors.0.count"; None removes it."""

    def act(doc: dict) -> None:
        *way, last = [int(part) if part.isdigit() else part for part in path.split(".")]
        for part in way:
            doc = doc[part]
        if value is None:
            del doc[last]
        else:
            doc[last] = value

    return act


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("accessors.0.count", 4, "bufferViews.0. is truncated"),
        ("accessors.0.count", 10**9, "claims 1000000000 elements"),
        ("accessors.0.count", -1, "not an integer >= 0"),
        ("accessors.0.count", None, "not an integer >= 0"),
        ("accessors.0.type", "VEC7", "unknown type"),
        ("accessors.0.type", "SCALAR", "positions with 1 components"),
        ("accessors.0.bufferView", 9, r"bufferViews\[9\], but has only 2 bufferViews"),
        ("accessors.0.byteOffset", 1000, "bufferViews.0. is truncated"),
        ("accessors.1.componentType", 5126, "."),
        ("bufferViews.0.byteLength", 8, "bufferViews.0. is truncated"),
        ("bufferViews.0.byteOffset", 10**6, "bufferViews.0. is truncated"),
        ("buffers.0.byteLength", 10**6, r"truncated \(44 of 1000000 bytes\)"),
        ("buffers.0.uri", "data:;base64,@@", "data URI of buffers.0. is damaged"),
        ("buffers.0.uri", "https://example.org/a.bin", "is remote and will not be downloaded"),
        ("buffers.0.uri", "missing.bin", "missing.bin cannot be read"),
        ("meshes.0.primitives.0.mode", 0, "no triangles"),
        ("meshes.0.primitives", "x", "malformed"),
        ("meshes.0.primitives", None, "malformed"),
        ("meshes.0", 7, '"meshes" entry of the JSON is not a list of objects'),
        ("nodes.0.mesh", 3, r"meshes\[3\], but has only 1 meshes"),
        ("nodes.0.mesh", None, "no triangles"),
        ("nodes.0.children", [0], "two parents or is part of a cycle"),
        ("nodes.0.matrix", [1, 2], r"transform of nodes\[0\] cannot be read"),
        ("nodes.0.scale", [float("inf"), 1, 1], "not finite"),
        ("nodes.0.scale", [0, 0, 0], "extent is zero"),
        ("nodes.0.scale", [1e300, 1e300, 1e300], "."),
        ("nodes.0.rotation", "abcd", "cannot be read"),
        ("scene", 4, r"scenes\[4\]"),
        ("asset.version", "1.0", "glTF version 1.0 is not supported"),
        ("asset", [], "glTF version unknown"),
    ],
)
def test_damaged_gltf(tmp_path: Path, builder: Any, path: str, value: Any, reason: str) -> None:
    damage(path, value)(good_glb(builder).doc)
    file = builder.glb(tmp_path / "bad.glb")
    if path == "nodes.0.scale" and value == [1e300] * 3:
        # Extreme but finite: loads like any other size.
        assert load_mesh(file).faces.shape == (1, 3)
        return
    with pytest.raises(MeshError, match=reason) as caught:
        load_mesh(file)
    assert str(caught.value).startswith(f"{file}: ")


def test_glb_container(tmp_path: Path, builder: Any) -> None:
    whole = good_glb(builder).glb(tmp_path / "good.glb").read_bytes()
    path = tmp_path / "bad.glb"
    for content, reason in (
        (b"glTF" + struct.pack("<II", 1, 20) + b"\0" * 20, "GLB version 1"),
        (whole[:12] + struct.pack("<I4s", 10**6, b"JSON") + whole[20:], "a GLB chunk is truncated"),
        (whole[:16] + b"BIN\0" + whole[20:], "no JSON chunk"),
        (b"[1, 2]", "not a glTF document"),
        (b'{"asset": ', "the JSON cannot be parsed"),
        (b"[" * 100000, "the JSON cannot be parsed"),
        (json.dumps({"asset": {"version": "2.0"}}).encode(), "no triangles"),
    ):
        path.write_bytes(content)
        with pytest.raises(MeshError, match=reason):
            load_mesh(path)


def test_truncation_anywhere_is_noticed(tmp_path: Path) -> None:
    content = exported("glb")
    path = tmp_path / "cut.glb"
    for part in (0.02, 0.1, 0.35, 0.5, 0.77, 0.9, 0.99):
        path.write_bytes(content[: int(len(content) * part)])
        with pytest.raises(MeshError):
            load_mesh(path)


def test_random_damage_never_escapes_as_another_error(tmp_path: Path, builder: Any) -> None:
    whole = bytearray(good_glb(builder).glb(tmp_path / "good.glb").read_bytes())
    rng = np.random.default_rng(0)
    path = tmp_path / "noise.glb"
    refused = 0
    for _ in range(300):
        content = whole.copy()
        for place in rng.integers(12, len(whole), size=rng.integers(1, 6)):
            content[place] = rng.integers(32, 127)
        path.write_bytes(content)
        try:
            load_mesh(path)
        except MeshError:
            refused += 1
    assert refused > 100
