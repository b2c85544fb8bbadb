"""Random poses: seeded joint rotations, the same for every rollout of a group on every worker."""

import hashlib

import numpy as np
from numpy.typing import NDArray


def pose_seed(run_seed: int, mesh: str | int, step: int) -> int:
    """A 64-bit seed from (run seed, mesh name or index, step), the same on every machine and backend."""
    text = f"{run_seed}/{mesh}/{step}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def random_rotations(poses: int, joints: int, max_angle_deg: float, seed: int) -> NDArray[np.float64]:
    """Rotations about uniform random axes by uniform angles in [0, max_angle_deg].

    Drawn joint by joint: for one seed and number of poses, joint j of pose p gets the same rotation in every
    rig, however many joints the rig has. `random_rotations(p, 9, …)[:, :4] == random_rotations(p, 4, …)`.
    This is how a group of rollouts with different skeletons shares its poses.

    Args:
        poses: P >= 1.
        joints: J >= 1.
        max_angle_deg: 0 to 180, degrees.
        seed: from `pose_seed`.

    Returns:
        (P, J, 3, 3) float64, for column vectors.

    Raises:
        ValueError: an argument out of range.

    Source: paper, "Deformation smoothness" (5 random poses); the default angle of 30 degrees is this
    project's.
    """
    if poses < 1 or joints < 1:
        raise ValueError(f"poses is {poses} and joints {joints}; both must be at least 1")
    if not 0 <= max_angle_deg <= 180:
        raise ValueError(f"max_angle_deg is {max_angle_deg}; it must be between 0 and 180")
    draws = np.random.Generator(np.random.Philox(seed)).random((joints, poses, 3)).transpose(1, 0, 2)
    # Archimedes: a uniform height and a uniform longitude make a uniform point of the sphere.
    height = 2 * draws[..., 0] - 1
    longitude = 2 * np.pi * draws[..., 1]
    radius = np.sqrt(1 - height**2)
    axes = np.stack([radius * np.cos(longitude), radius * np.sin(longitude), height], axis=-1)
    return rotation_matrices(axes * (np.radians(max_angle_deg) * draws[..., 2])[..., None])


def rotation_matrices(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rotation vectors (..., 3), axis times radians, to matrices (..., 3, 3), by Rodrigues' formula."""
    angle = np.linalg.norm(vectors, axis=-1)[..., None, None]
    x, y, z = np.moveaxis(vectors, -1, 0)
    zero = np.zeros_like(x)
    cross = np.stack([zero, -z, y, z, zero, -x, -y, x, zero], axis=-1).reshape(*x.shape, 3, 3)
    # sinc(t) = sin(pi t) / (pi t), so both factors stay finite at angle 0.
    return (
        np.eye(3) + np.sinc(angle / np.pi) * cross + 0.5 * np.sinc(angle / (2 * np.pi)) ** 2 * (cross @ cross)
    )
