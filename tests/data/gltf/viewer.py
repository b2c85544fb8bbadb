"""A plain glTF viewer for tests: where a written file shows its vertices, after the specification."""

import json
import struct
from typing import Any

import numpy as np

DTYPES = {5120: "i1", 5121: "u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT4": 16}


def parse(glb: bytes) -> tuple[dict[str, Any], bytes]:
    """The JSON document and the binary chunk."""
    magic, version, length = struct.unpack_from("<4sII", glb)
    assert (magic, version, length) == (b"glTF", 2, len(glb))
    size = struct.unpack_from("<I", glb, 12)[0]
    return json.loads(glb[20 : 20 + size]), glb[28 + size :]


def read(doc: dict[str, Any], binary: bytes, index: int) -> np.ndarray:
    """An accessor (count, width), as stored."""
    accessor = doc["accessors"][index]
    view = doc["bufferViews"][accessor["bufferView"]]
    dtype, width = np.dtype(DTYPES[accessor["componentType"]]), WIDTHS[accessor["type"]]
    stride = view.get("byteStride", dtype.itemsize * width)
    offset = view.get("byteOffset", 0) + accessor.get("byteOffset", 0)
    shape, strides = (accessor["count"], width), (stride, dtype.itemsize)
    return np.ndarray(shape, dtype, binary, offset, strides).copy()


def local(node: dict[str, Any]) -> np.ndarray:
    if "matrix" in node:
        return np.array(node["matrix"], dtype=float).reshape(4, 4).T
    x, y, z, w = node.get("rotation", [0, 0, 0, 1])
    turn = np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    matrix = np.eye(4)
    matrix[:3, :3] = turn * np.array(node.get("scale", [1, 1, 1]), dtype=float)
    matrix[:3, 3] = node.get("translation", [0, 0, 0])
    return matrix


def worlds(doc: dict[str, Any]) -> dict[int, np.ndarray]:
    """World matrices of the nodes of the default scene; without scenes, of all nodes."""
    children = {child for node in doc["nodes"] for child in node.get("children", [])}
    roots = [index for index in range(len(doc["nodes"])) if index not in children]
    if "scenes" in doc:
        roots = doc["scenes"][doc.get("scene", 0)]["nodes"]
    found: dict[int, np.ndarray] = {}
    stack = [(root, np.eye(4)) for root in roots]
    while stack:
        index, above = stack.pop()
        assert index not in found
        found[index] = above @ local(doc["nodes"][index])
        stack.extend((child, found[index]) for child in doc["nodes"][index].get("children", []))
    return found


def shown(doc: dict[str, Any], binary: bytes) -> dict[tuple[int, int], np.ndarray]:
    """Every vertex (n, 3) of each (node, primitive) where a viewer shows it, with default morph weights."""
    places = worlds(doc)
    result = {}
    for index, world in places.items():
        node = doc["nodes"][index]
        if "mesh" not in node:
            continue
        mesh = doc["meshes"][node["mesh"]]
        for number, primitive in enumerate(mesh["primitives"]):
            points = read(doc, binary, primitive["attributes"]["POSITION"]).astype(float)
            for target, weight in zip(primitive.get("targets", []), mesh.get("weights", []), strict=False):
                points += weight * read(doc, binary, target["POSITION"])
            ones = np.hstack([points, np.ones((len(points), 1))])
            if "skin" in node:
                skin = doc["skins"][node["skin"]]
                inverse = read(doc, binary, skin["inverseBindMatrices"]).reshape(-1, 4, 4).transpose(0, 2, 1)
                stack = np.array([places[joint] for joint in skin["joints"]]) @ inverse
                slots = read(doc, binary, primitive["attributes"]["JOINTS_0"])
                weights = read(doc, binary, primitive["attributes"]["WEIGHTS_0"])
                blended = np.einsum("vk,vkij->vij", weights.astype(float), stack[slots])
                result[index, number] = np.einsum("vij,vj->vi", blended, ones)[:, :3]
            else:
                result[index, number] = (ones @ world.T)[:, :3]
    return result
