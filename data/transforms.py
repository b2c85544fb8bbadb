"""Geometric augmentations of a rigged mesh: random scale, rotation and noise, back in the mesh frame."""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from data.mesh import Mesh
from data.rig import Rig
from data.welding import coincident_distance, weld


def in_mesh_frame(
    mesh: Mesh, rig: Rig, vertices: NDArray[np.floating], joints: NDArray[np.floating]
) -> tuple[Mesh, Rig]:
    """The mesh and rig with new positions, normalised together into the mesh frame of the new vertices.

    vertices (V, 3), joints (J, 3) in a common frame; the vertices must have a positive extent. The result's
    `centre` and `scale` are 0 and 1: there is no original frame to map back to.
    """
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    centre, scale = (low + high) / 2, 2.0 / (high - low).max()
    framed = ((vertices - centre) * scale).astype(np.float32)
    moved = ((joints - centre) * scale).astype(np.float32)
    return Mesh(framed, mesh.faces, mesh.name, np.zeros(3), 1.0), replace(rig, joints=moved)


def transformed(mesh: Mesh, rig: Rig, matrix: NDArray[np.float64]) -> tuple[Mesh, Rig]:
    """Apply an invertible linear map (3, 3) for column vectors to mesh and rig; mesh frame."""
    vertices = mesh.vertices.astype(np.float64) @ matrix.T
    return in_mesh_frame(mesh, rig, vertices, rig.joints.astype(np.float64) @ matrix.T)


def scaled(mesh: Mesh, rig: Rig, rng: np.random.Generator, factors: tuple[float, float]) -> tuple[Mesh, Rig]:
    """Scale each axis by its own factor, log-uniform between the two `factors` (0 < low <= high)."""
    low, high = np.log(factors)
    return transformed(mesh, rig, np.diag(np.exp(rng.uniform(low, high, size=3))))


def rotated(mesh: Mesh, rig: Rig, rng: np.random.Generator, max_angle: float) -> tuple[Mesh, Rig]:
    """Rotate about a uniformly random axis by an angle uniform in [0, max_angle] radians."""
    return transformed(mesh, rig, random_rotations(rng, 1, max_angle)[0])


def turned(mesh: Mesh, rig: Rig, rng: np.random.Generator, max_turn: float) -> tuple[Mesh, Rig]:
    """Rotate about the up axis (y) by an angle uniform in [-max_turn, max_turn] radians."""
    angle = rng.uniform(-max_turn, max_turn)
    cos, sin = np.cos(angle), np.sin(angle)
    return transformed(mesh, rig, np.array([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]]))


def quarter_turned(mesh: Mesh, rig: Rig, rng: np.random.Generator) -> tuple[Mesh, Rig]:
    """Rotate about the up axis (y) by 90, 180 or 270 degrees; exact up to rounding."""
    quarter = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [-1.0, 0.0, 0.0]])
    return transformed(mesh, rig, np.linalg.matrix_power(quarter, int(rng.integers(1, 4))))


def mirrored(mesh: Mesh, rig: Rig) -> tuple[Mesh, Rig]:
    """Swap left and right: x becomes -x, and faces turn their order, so that they still face outwards."""
    flipped, reflected = transformed(mesh, rig, np.diag([-1.0, 1.0, 1.0]))
    return replace(flipped, faces=np.ascontiguousarray(mesh.faces[:, ::-1])), reflected


def jittered(
    mesh: Mesh, rig: Rig, rng: np.random.Generator, joint_noise: float, vertex_noise: float
) -> tuple[Mesh, Rig]:
    """Add Gaussian noise of these standard deviations per axis (mesh frame) to joints and vertices.

    Vertices at one position move together, so that seams stay closed.
    """
    joints = rig.joints + joint_noise * rng.standard_normal(rig.joints.shape)
    if not vertex_noise:
        return mesh, replace(rig, joints=joints.astype(np.float32))
    first, place = weld(mesh.vertices, coincident_distance(mesh.vertices))
    vertices = mesh.vertices + vertex_noise * rng.standard_normal(mesh.vertices.shape)[first[place]]
    return in_mesh_frame(mesh, rig, vertices, joints)


def random_rotations(rng: np.random.Generator, count: int, max_angle: float) -> NDArray[np.float64]:
    """Rotations (count, 3, 3): axes uniform on the sphere, angles uniform in [0, max_angle] radians."""
    axes = rng.standard_normal((count, 3))
    axes /= np.maximum(np.linalg.norm(axes, axis=1, keepdims=True), 1e-300)
    return rotations_about(axes, rng.uniform(0.0, max_angle, size=count))


def rotations_about(axes: NDArray[np.float64], angles: NDArray[np.float64]) -> NDArray[np.float64]:
    """Right-handed rotations (N, 3, 3), for column vectors, about unit axes (N, 3) by angles (N,) in radians.

    Rodrigues' formula: R = I + sin(angle) K + (1 - cos(angle)) K², K the cross-product matrix of the axis.
    """
    cross = np.zeros((len(axes), 3, 3))
    cross[:, [2, 0, 1], [1, 2, 0]] = axes
    cross[:, [1, 2, 0], [2, 0, 1]] = -axes
    sin, cos = np.sin(angles)[:, None, None], np.cos(angles)[:, None, None]
    return np.eye(3) + sin * cross + (1 - cos) * (cross @ cross)
