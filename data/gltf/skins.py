"""Reads glTF skins, and which of their joints and inverse bind matrices the meshes really use."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.gltf.document import Gltf
from data.gltf.primitives import Influences, Primitive

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Skin:
    """A skin as its meshes use it. A slot is a position in the skin's list of n joints.

    `nodes`: the joints' node indices. `inverse_bind` (n, 4, 4): as stored, the identity where `usable` (n,)
    is False: missing, not finite or not invertible. `mass` (n,): the weight that the vertices of all
    triangles give each slot. `corners` (8, 4): the bounding box of those vertices in mesh space, homogeneous.
    """

    index: int
    nodes: list[int]
    inverse_bind: Floats
    usable: NDArray[np.bool_]
    mass: Floats
    corners: Floats

    @property
    def used(self) -> list[int]:
        """The slots that move a vertex: only their matrices mean something for certain."""
        return [int(slot) for slot in np.flatnonzero(self.mass > 0)]

    @property
    def node_posed(self) -> bool:
        """Whether no used joint stores a bind pose: written out, identity matrices mean the same as none."""
        return all(not self.usable[slot] or self.is_identity(slot) for slot in self.used)

    def is_identity(self, slot: int) -> bool:
        """Whether the slot's matrix is the identity: what exporters write for joints without vertices."""
        return bool(np.allclose(self.inverse_bind[slot], np.eye(4), rtol=0, atol=1e-6))

    def has_bind_pose(self, slot: int) -> bool:
        """Whether the slot's matrix can be a bind pose: usable, and not an unused joint's identity."""
        return bool(self.usable[slot]) and (self.mass[slot] > 0 or not self.is_identity(slot))


def read_skin(gltf: Gltf, index: int, parts: list[tuple[Primitive, Influences]]) -> Skin:
    """Skin `index`, with its use by all its primitives. Raises MeshError if it cannot be read."""
    nodes = joint_nodes(gltf, index)
    inverse_bind, usable = _inverse_bind(gltf, gltf.item("skins", index), index, len(nodes))
    mass = np.zeros(len(nodes))
    for _, influences in parts:
        total = influences.weights.sum(axis=1, keepdims=True)
        np.add.at(mass, influences.slots, influences.weights / np.where(total > 0, total, 1))
    if "inverseBindMatrices" in gltf.item("skins", index) and mass.any() and not usable[mass > 0].any():
        raise gltf.error(f"skins[{index}] has no invertible inverse bind matrix for a joint with vertices")
    points = np.concatenate([primitive.vertices for primitive, _ in parts])
    low, high = points.min(axis=0), points.max(axis=0)
    ends = np.stack([low, high])
    corners = np.array([[*(ends[bit >> axis & 1, axis] for axis in range(3)), 1] for bit in range(8)])
    return Skin(index, nodes, inverse_bind, usable, mass, corners)


def joint_nodes(gltf: Gltf, index: Any) -> list[int]:
    """The node indices of a skin's joints. Raises MeshError if it has none."""
    nodes = list(gltf.item("skins", index)["joints"])
    if not nodes:
        raise gltf.error(f"skins[{index}] has no joints")
    return nodes


def invertible(matrix: Floats) -> bool:
    """Whether the linear part of a matrix (4, 4) is finite and safely invertible."""
    if not np.isfinite(matrix).all():
        return False
    sizes = np.linalg.svd(matrix[:3, :3], compute_uv=False)
    return bool(sizes[0] > 0 and sizes[-1] > 1e-9 * sizes[0])


def _inverse_bind(
    gltf: Gltf, skin: dict[str, Any], index: int, count: int
) -> tuple[Floats, NDArray[np.bool_]]:
    """Inverse bind matrices (count, 4, 4) and which of them are usable (count,)."""
    result = np.tile(np.eye(4), (count, 1, 1))
    usable = np.zeros(count, dtype=np.bool_)
    if "inverseBindMatrices" in skin:
        flat = gltf.accessor(skin["inverseBindMatrices"]).astype(np.float64)
        if flat.shape[1] != 16:
            raise gltf.error(f"skins[{index}] has inverse bind matrices with {flat.shape[1]} components")
        stored = flat[:count].reshape(-1, 4, 4).transpose(0, 2, 1)
        for slot, matrix in enumerate(stored):
            if invertible(matrix):
                result[slot, :3] = matrix[:3]
                usable[slot] = True
    return result, usable
