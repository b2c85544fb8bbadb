"""Fixtures of the data tests: a glTF writer that can also write invalid files, and a check for silence."""

import base64
import json
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data.creatures import make_creature
from data.gltf.skinned import write_skinned_glb
from tests.data.rig_files import write_unirig

TYPES = {"int8": 5120, "uint8": 5121, "int16": 5122, "uint16": 5123, "uint32": 5125, "float32": 5126}
KINDS = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}


class GltfBuilder:
    """Collects arrays into one buffer; `doc` is the JSON document and may be damaged at will."""

    def __init__(self) -> None:
        self.binary = bytearray()
        self.doc: dict[str, Any] = {
            "asset": {"version": "2.0"},
            "accessors": [],
            "bufferViews": [],
            "buffers": [{}],
            "meshes": [],
            "nodes": [],
            "scene": 0,
            "scenes": [{"nodes": []}],
        }

    def view(self, raw: bytes, **extra: Any) -> int:
        self.doc["bufferViews"].append(
            {"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(raw), **extra}
        )
        self.binary += raw + b"\0" * (-len(raw) % 4)
        return len(self.doc["bufferViews"]) - 1

    def accessor(self, values: Any, dtype: str = "float32", **extra: Any) -> int:
        array = np.asarray(values, dtype=dtype)
        array = array.reshape(len(array), -1)
        self.doc["accessors"].append(
            {
                "bufferView": self.view(array.tobytes()),
                "componentType": TYPES[dtype],
                "count": len(array),
                "type": KINDS[array.shape[1]],
                **extra,
            }
        )
        return len(self.doc["accessors"]) - 1

    def matrices(self, matrices: Any) -> int:
        """(n, 4, 4) row-major in, column-major in the file."""
        return self.accessor(np.asarray(matrices).transpose(0, 2, 1).reshape(-1, 16))

    def node(self, root: bool = False, **node: Any) -> int:
        self.doc["nodes"].append(node)
        if root:
            self.doc["scenes"][0]["nodes"].append(len(self.doc["nodes"]) - 1)
        return len(self.doc["nodes"]) - 1

    def mesh(self, *primitives: dict[str, Any]) -> int:
        self.doc["meshes"].append({"primitives": list(primitives)})
        return len(self.doc["meshes"]) - 1

    def glb(self, path: Path) -> Path:
        self.doc["buffers"][0].setdefault("byteLength", len(self.binary))
        text = json.dumps(self.doc).encode()
        text += b" " * (-len(text) % 4)
        total = 12 + 8 + len(text) + 8 + len(self.binary)
        path.write_bytes(
            b"glTF"
            + struct.pack("<II", 2, total)
            + struct.pack("<I4s", len(text), b"JSON")
            + text
            + struct.pack("<I4s", len(self.binary), b"BIN\0")
            + bytes(self.binary)
        )
        return path

    def gltf(self, path: Path, side_file: str | None = None) -> Path:
        self.doc["buffers"][0].setdefault("byteLength", len(self.binary))
        if side_file:
            self.doc["buffers"][0]["uri"] = side_file
        else:
            data = base64.b64encode(bytes(self.binary)).decode()
            self.doc["buffers"][0]["uri"] = f"data:application/octet-stream;base64,{data}"
        path.write_text(json.dumps(self.doc))
        return path


@pytest.fixture
def builder() -> GltfBuilder:
    return GltfBuilder()


@pytest.fixture
def silent(capfd: pytest.CaptureFixture[str]) -> Any:
    """Fails a test that warns or prints."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
    assert capfd.readouterr() == ("", "")


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Six files: four usable, one with NaN weights, one truncated."""
    folder = tmp_path / "raw"
    for seed, place in enumerate(("cats/a", "cats/b", "dogs/a")):
        write_unirig(folder / place, seed)
    write_unirig(folder / "nan", 3, nan=True)
    creature = make_creature(4)
    write_skinned_glb(folder / "wolf é.glb", creature.mesh, creature.rig)
    (folder / "cut.glb").write_bytes((folder / "wolf é.glb").read_bytes()[:500])
    return folder
