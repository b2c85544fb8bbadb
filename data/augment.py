"""Random turns and stretches of a mesh with its normals and joints, for training."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def augment(
    vertices: NDArray[np.floating],
    normals: NDArray[np.floating],
    joints: NDArray[np.floating],
    rng: np.random.Generator,
    max_turn: float = np.pi,
    max_stretch: float = 0.0,
) -> tuple[Floats, Floats, Floats]:
    """Turn about the up axis (y) by a uniform angle, stretch each axis, return to the mesh frame.

    vertices (V, 3): their bounding box defines the mesh frame, so give mesh vertices, or points with the
    vertices appended. normals (N, 3), unit or zero, may belong to other points than `vertices`.
    joints (J, 3) and anything else in the same frame. max_turn in radians; each axis is scaled by a
    factor whose logarithm is uniform in [-max_stretch, max_stretch]. Returns float32 copies.
    """
    angle = rng.uniform(-max_turn, max_turn)
    stretch = np.exp(rng.uniform(-max_stretch, max_stretch, size=3))
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, 0.0, sin], [0.0, 1.0, 0.0], [-sin, 0.0, cos]])
    matrix = turn * stretch  # stretch along the original axes first, then turn
    moved = np.asarray(vertices, dtype=np.float64) @ matrix.T
    low, high = moved.min(axis=0), moved.max(axis=0)
    centre, scale = (low + high) / 2, 2.0 / (high - low).max()
    # Normals go with the inverse transpose: turn * (1 / stretch).
    turned = np.asarray(normals, dtype=np.float64) @ (turn / stretch).T
    lengths = np.linalg.norm(turned, axis=1, keepdims=True)
    turned = np.divide(turned, lengths, out=np.zeros_like(turned), where=lengths > 0)
    moved_joints = (np.asarray(joints, dtype=np.float64) @ matrix.T - centre) * scale
    return (
        ((moved - centre) * scale).astype(np.float32),
        turned.astype(np.float32),
        moved_joints.astype(np.float32),
    )
