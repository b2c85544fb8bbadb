"""What the 3D viewer shows, as JSON and a block of arrays: meshes, rigs side by side, and poses."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.gltf.influences import top_influences
from data.mesh import Mesh
from data.rig import Rig
from rewards.settings import RewardSettings
from rl.report.packing import Block, quantised_positions, quantised_weights
from rl.report.simplify import reduced

MOST_FACES = 12_000

BEFORE, AFTER, TRUTH = "before", "after", "ground truth"


@dataclass(frozen=True, eq=False)
class Poses:
    """Poses of a rig for the viewer's slider.

    vectors: (P, J, 3) float64, rotation vectors of the joints, radians. degrees: of each pose the largest
    angle that it may have, which the slider scales; None for a recorded pose, which is whole at its end.
    """

    vectors: NDArray[np.float64]
    degrees: list[float | None]


@dataclass(frozen=True, eq=False)
class RigView:
    """One rig of the viewer.

    Attributes:
        run: its place in the list of runs; None for a rig of no run, such as the ground truth.
        stage: before, after, ground truth, or what else stands above it.
        mesh: the mesh, in the mesh frame, whose name is `name`.
        rig: with weights (V, J) at the mesh's vertices; None if there is none, for the reason `note`.
        poses: those in which the rig is scored; None without a rig.
        numbers: what stands below it, such as rewards.
    """

    run: int | None
    stage: str
    name: str
    mesh: Mesh
    rig: Rig | None
    poses: Poses | None
    numbers: Mapping[str, float] = field(default_factory=dict)
    note: str = ""


def reward_poses(settings: RewardSettings, rig: Rig, seed: int) -> Poses:
    """The poses in which the smoothness reward scores a rig with a seed."""
    from scipy.spatial.transform import Rotation

    joints = len(rig.joints)
    matrices = settings.rotations(joints, seed, rig.parents)
    vectors = Rotation.from_matrix(matrices.reshape(-1, 3, 3)).as_rotvec().reshape(len(matrices), joints, 3)
    usual = settings.max_angle_deg if settings.pose_file is None else None
    wide = settings.wide_poses
    return Poses(vectors, [usual] * (len(matrices) - wide) + [settings.wide_angle_deg] * wide)


def viewer_data(views: Sequence[RigView], runs: Sequence[str]) -> tuple[dict[str, Any], str]:
    """The viewer's JSON and its block of arrays; each mesh is stored once.

    A mesh of more than 12,000 faces is reduced to fewer.
    """
    block = Block()
    meshes: list[dict[str, Any]] = []
    known: dict[str, tuple[int, NDArray[np.int64]]] = {}
    rigs = []
    for view in views:
        key = _digest(view.name, view.mesh)
        if key not in known:
            source, faces = reduced(view.mesh.vertices, view.mesh.faces, MOST_FACES)
            known[key] = len(meshes), source
            meshes.append(_mesh(view.name, view.mesh, source, faces, block))
        place, source = known[key]
        row: dict[str, Any] = {
            "mesh": place,
            "run": view.run,
            "stage": view.stage,
            "numbers": dict(view.numbers),
            "note": view.note,
        }
        if view.rig is not None and view.poses is not None:
            row |= _rig(view.rig, source, view.poses, block)
        rigs.append(row)
    return {"meshes": meshes, "runs": list(runs), "rigs": rigs}, block.text()


def _digest(name: str, mesh: Mesh) -> str:
    digest = hashlib.sha256(name.encode())
    for array in (mesh.vertices, mesh.faces):
        digest.update(array.tobytes())
    return digest.hexdigest()


def _mesh(
    name: str, mesh: Mesh, source: NDArray[np.int64], faces: NDArray[np.int64], block: Block
) -> dict[str, Any]:
    small = np.uint16 if len(source) <= 1 << 16 else np.uint32
    return {
        "name": name,
        "positions": block.add(quantised_positions(mesh.vertices[source])),
        "faces": block.add(faces.astype(small)),
        "facesOfFile": len(mesh.faces),
    }


def _rig(rig: Rig, source: NDArray[np.int64], poses: Poses, block: Block) -> dict[str, Any]:
    joints, values = top_influences(rig.weights[source])
    named = any(name != f"bone_{place}" for place, name in enumerate(rig.names))
    # Columns one after the other: equal neighbours compress better.
    return {
        "joints": block.add(rig.joints),
        "parents": rig.parents.tolist(),
        "names": list(rig.names) if named else None,
        "influences": block.add(joints.T.astype(np.uint16)),
        "weights": block.add(quantised_weights(values).T),
        "poses": block.add(poses.vectors.astype(np.float32)),
        "poseDegrees": poses.degrees,
    }
