"""Random meshes and rigs for the fuzz test of scoring, most of them malformed."""

from typing import Any

import numpy as np

from rewards import RewardError, RewardSettings, prepare_scoring_mesh, score_rig
from rewards.guards import GUARD_NAMES

NUMBERS = np.array(
    [0.0, -0.0, 1.0, -1.0, 1e-7, 1e-30, 5e-324, 1e7, 1e29, 1e31, 1e300, np.inf, -np.inf, np.nan]
)


def outcome(seed: int) -> str:
    """Score one random case: `mesh refused`, `rig refused` or `scored`.

    Raises AssertionError for a reward outside [0, 1]; exceptions other than RewardError propagate.
    """
    rng = np.random.default_rng(seed)
    settings = _settings(rng)
    # Generating a case may overflow; scoring it must not.
    with np.errstate(all="ignore"):
        vertices, faces = _mesh(rng)
    try:
        mesh = prepare_scoring_mesh(vertices, faces, settings)
    except RewardError:
        return "mesh refused"
    with np.errstate(all="ignore"):
        joints, parents, weights = _rig(rng, len(mesh.vertices))
    rotations = settings.rotations(max(len(joints), 1), seed)
    try:
        score = score_rig(mesh, joints, parents, weights, rotations, settings)
    except RewardError:
        return "rig refused"
    for name, value in score.rewards.items():
        assert 0 <= value <= 1, (name, value)
    assert all(np.isfinite(value) for value in score.diagnostics.values()), score.diagnostics
    return "scored"


def _settings(rng: np.random.Generator) -> RewardSettings:
    return RewardSettings(
        resolution=int(rng.integers(1, 30)),
        interior=rng.choice(["projection", "flood", "surface"]),
        alpha=float(rng.choice([0, 0.05, 1e6])),
        distance_unit=rng.choice(["cells", "mesh"]),
        samples_per_bone=int(rng.integers(1, 12)),
        threshold=float(rng.choice([0, 0.1, 1])),
        max_influences=int(rng.integers(0, 6)),
        unbound_power=float(rng.choice([0.5, 1, 2])),
        poses=int(rng.integers(1, 4)),
        max_angle_deg=float(rng.choice([0, 30, 180])),
        smoothness_scale=float(rng.choice([0, 1, 1e6])),
        reduce=rng.choice(["max", "mean"]),
        max_scoring_vertices=int(rng.choice([2, 5, 10_000])),
        wide_poses=int(rng.integers(0, 2)),
        guards=GUARD_NAMES,
    )


def _mesh(rng: np.random.Generator) -> tuple[Any, Any]:
    vertices = rng.uniform(-1, 1, (rng.integers(1, 25), 3)) * 10.0 ** rng.choice([0, 0, 0, -8, 8, -150, 25])
    faces = rng.integers(0, len(vertices), (rng.integers(0, 30), 3)).astype(rng.choice([np.int32, np.int64]))
    for _ in range(rng.integers(0, 3)):
        match rng.integers(0, 9):
            case 0:
                vertices[:, rng.integers(0, 3)] = vertices[0, 0]  # flat
            case 1:
                vertices[:] = vertices[0] * rng.random((len(vertices), 1))  # on a line
            case 2:
                vertices = np.round(vertices, 1)  # coincident and on grid planes
            case 3:
                _spoil(rng, vertices)
            case 4 if faces.size:
                faces[rng.integers(0, len(faces))] = rng.integers(-2, len(vertices) + 2, faces.shape[1])
            case 5:
                vertices = vertices + rng.normal(0, 1e6, 3)
            case 6:
                vertices = vertices.astype(np.float32)
            case 7:
                faces = faces[:, : rng.integers(0, 6)]
            case 8 if faces.size:
                faces[rng.integers(0, len(faces))] = 0
    return vertices, faces


def _rig(rng: np.random.Generator, vertex_count: int) -> tuple[Any, Any, Any]:
    joint_count = int(rng.integers(0 if rng.random() < 0.02 else 1, 12))
    joints = rng.uniform(-1.5, 1.5, (joint_count, 3))
    parents = np.array([rng.integers(-1, max(i, 1)) if i else -1 for i in range(joint_count)], dtype=np.int64)
    weights = rng.random((vertex_count, joint_count), dtype=np.float32)
    for _ in range(rng.integers(0, 3) if joint_count else 0):
        match rng.integers(0, 10):
            case 0:
                parents[:] = rng.integers(-2, joint_count + 1, joint_count)  # cycles, ranges
            case 1:
                parents = rng.permutation(parents)
            case 2:
                joints[rng.integers(0, joint_count)] = joints[0]
            case 3:
                _spoil(rng, joints)
            case 4:
                weights[rng.random(len(weights)) < 0.5] = 0
            case 5:
                weights = weights.astype(np.float64)
                _spoil(rng, weights)
            case 6:
                weights = weights * 10.0 ** rng.choice([-40, -12, 20])
            case 7:
                weights = weights[:-1] if rng.random() < 0.3 else weights[::-1]
            case 8:
                joints = joints * 1e12
            case 9:
                joints, parents = joints.astype(np.float32), parents.astype(np.int32)
    return joints, parents, weights


def _spoil(rng: np.random.Generator, array: np.ndarray) -> None:
    """Overwrite one entry with a number that breaks careless arithmetic."""
    if array.size:
        array.flat[rng.integers(0, array.size)] = rng.choice(NUMBERS)
