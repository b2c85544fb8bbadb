"""Skinned columns of any length, scale and pose, built so that tests know where everything stands."""

from pathlib import Path
from typing import Any

import numpy as np

from data import Rig, load_asset
from data.mesh import Mesh
from tests.data.conftest import GltfBuilder


def turn(axis: Any, angle: float) -> list[float]:
    """A quaternion (x, y, z, w)."""
    unit = np.asarray(axis, dtype=float) / np.linalg.norm(axis)
    return [*(np.sin(angle / 2) * unit).tolist(), float(np.cos(angle / 2))]


def translated(*offset: float) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = offset
    return matrix


def rings(count: int, x: float = 0.0, first: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """Square rings at y = first, first + 1, …: vertices (4 count, 3) and faces of the wall between them."""
    ring = np.array([[-0.4, -0.4], [0.4, -0.4], [0.4, 0.4], [-0.4, 0.4]])
    vertices = np.array([[x + a, first + level, b] for level in range(count) for a, b in ring])
    faces = []
    for level in range(count - 1):
        for side in range(4):
            low, next_low = 4 * level + side, 4 * level + (side + 1) % 4
            faces += [[low, low + 4, next_low], [next_low, low + 4, next_low + 4]]
    return vertices, np.array(faces)


class Column:
    """A column along y: joint k, at height k, moves ring k. Mesh space is the world at rest.

    `spin`: nodes[0], the parent of the root joint, is turned by this quaternion and scaled by `unit`.
    Joint k is node 1 + k; the mesh is on the last node, alone in the scene's roots.
    """

    def __init__(self, count: int = 4, spin: Any = (0, 0, 0, 1), unit: float = 1.0, **mesh: Any) -> None:
        self.builder, self.count = GltfBuilder(), count
        self.points, self.faces = rings(count)
        build = self.builder
        build.node(root=True, rotation=list(spin), scale=[unit] * 3, children=[1], name="armature")
        for joint in range(count):
            children = [joint + 2] if joint + 1 < count else []
            build.node(name=f"j{joint}", translation=[0, float(joint > 0), 0], children=children)
        self.inverse = [translated(0, -joint, 0) for joint in range(count)]
        self.joints = list(range(1, count + 1))
        slots = np.repeat(np.arange(count), 4)[:, None] * [1, 0, 0, 0]
        self.slots, self.weights = slots, np.tile([1.0, 0, 0, 0], (len(slots), 1))
        self.mesh_node = build.node(root=True, mesh=0, skin=0, name="body", **mesh)

    def add_joint(self, parent: int, offset: Any, matrix: np.ndarray, place: int | None = None) -> None:
        """An unused joint below node `parent`; its matrix and its place in the skin's list."""
        node = self.builder.node(name=f"extra{len(self.joints)}", translation=list(offset))
        self.builder.doc["nodes"][parent].setdefault("children", []).append(node)
        at = len(self.joints) if place is None else place
        self.slots = np.where(self.slots >= at, self.slots + 1, self.slots)
        self.joints.insert(at, node)
        self.inverse.insert(at, matrix)

    def permute(self, order: list[int]) -> None:
        """Joint order[i] of the skin becomes joint i."""
        back = np.argsort(order)
        self.slots = np.where(self.weights > 0, back[self.slots], 0)
        self.joints = [self.joints[old] for old in order]
        self.inverse = [self.inverse[old] for old in order]

    def primitive(
        self, points: Any = None, faces: Any = None, slots: Any = None, weights: Any = None
    ) -> dict:
        build = self.builder
        return {
            "attributes": {
                "POSITION": build.accessor(self.points if points is None else points),
                "JOINTS_0": build.accessor(self.slots if slots is None else slots, "uint8"),
                "WEIGHTS_0": build.accessor(self.weights if weights is None else weights),
            },
            "indices": build.accessor(np.reshape(self.faces if faces is None else faces, -1), "uint16"),
        }

    def skin(self, joints: list[int], inverse: list[np.ndarray] | None) -> int:
        skin: dict[str, Any] = {"joints": joints}
        if inverse is not None:
            skin["inverseBindMatrices"] = self.builder.matrices(inverse)
        self.builder.doc.setdefault("skins", []).append(skin)
        return len(self.builder.doc["skins"]) - 1

    def finish(self, path: Path, matrices: int | None = None) -> Path:
        """Write the file, with only the first `matrices` inverse bind matrices."""
        build = self.builder
        if not build.doc.get("skins"):
            self.skin(self.joints, self.inverse[:matrices])
            build.doc["meshes"].insert(0, {"primitives": [self.primitive()]})
        return build.glb(path)


def world_places(mesh: Mesh, rig: Rig) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Vertices and joints by name in the file's own frame."""
    joints = rig.joints / mesh.scale + mesh.centre
    return mesh.vertices / mesh.scale + mesh.centre, dict(zip(rig.names, joints, strict=True))


def read(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray], tuple[str, ...]]:
    """Vertices, joints by name and notes of a rig, in the file's own frame."""
    asset = load_asset(path)
    assert asset.rig is not None, asset.notes
    return *world_places(asset.mesh, asset.rig), asset.notes
