"""Damages good mesh files at random: flipped bytes, cuts, repeated and foreign parts, extreme numbers."""

import re
from pathlib import Path

import numpy as np

from data import make_creature, write_skinned_glb
from data.gltf.document import read_gltf
from tests.data.mesh_files import OBJ, OFF, PLY, exported

NUMBERS = (
    b"nan",
    b"-inf",
    b"1e400",
    b"1e-400",
    b"-1",
    b"0",
    b"99999999999999999999",
    b"2147483648",
    b"1e30",
    b"",
)


def good_files(folder: Path) -> dict[str, bytes]:
    """Contents of whole files by suffix and kind: skinned GLB, its glTF JSON, OBJ, PLY, STL and OFF."""
    creature = make_creature(3)
    write_skinned_glb(folder / "creature.glb", creature.mesh, creature.rig)
    skinned = (folder / "creature.glb").read_bytes()
    read_gltf(folder / "creature.glb")
    files = {f"ball.{suffix}": exported(suffix) for suffix in ("glb", "obj", "ply", "stl", "off")}
    small = {"small.ply": PLY.encode(), "small.off": OFF.encode(), "small.obj": f"{OBJ}f 1 2 3\n".encode()}
    return {"skinned.glb": skinned, **files, **small}


def damage(rng: np.random.Generator, content: bytes) -> bytes:
    """The content with one to four kinds of damage, or one flipped byte."""
    data = bytearray(content)
    if rng.random() < 0.3:
        _flip(rng, data, 1)
        return bytes(data)
    for _ in range(int(rng.integers(1, 4))):
        place = int(rng.integers(0, len(data) + 1))
        length = int(rng.integers(1, 40))
        match rng.choice(
            ["flip", "head", "cut", "remove", "repeat", "noise", "zeros", "ones", "number", "line"]
        ):
            case "flip":
                _flip(rng, data, length)
            case "head":
                _flip(rng, data, 3, 2000)
            case "cut":
                del data[place:]
            case "remove":
                del data[place : place + length]
            case "repeat":
                data[place:place] = data[place : place + length]
            case "noise":
                data[place:place] = rng.bytes(length)
            case "zeros":
                data[place : place + length] = bytes(length)
            case "ones":
                data[place : place + 4] = b"\xff" * 4
            case "number":
                data = bytearray(_number(rng, bytes(data)))
            case "line":
                lines = bytes(data).split(b"\n")
                del lines[int(rng.integers(0, len(lines)))]
                data = bytearray(b"\n".join(lines))
    return bytes(data)


def _flip(rng: np.random.Generator, data: bytearray, count: int, within: int | None = None) -> None:
    for _ in range(count if data else 0):
        place = int(rng.integers(0, min(len(data), within or len(data))))
        data[place] ^= int(rng.integers(1, 256))


def _number(rng: np.random.Generator, data: bytes) -> bytes:
    """One number of the text, in a text file or the JSON of a GLB, replaced by an extreme one."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", data[:20_000]))
    if not found:
        return data
    match = found[int(rng.integers(0, len(found)))]
    return data[: match.start()] + NUMBERS[int(rng.integers(0, len(NUMBERS)))] + data[match.end() :]
