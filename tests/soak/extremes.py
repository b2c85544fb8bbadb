"""Extreme but finite meshes, rigs, weights and token sequences for the fuzz campaigns."""

import numpy as np
from numpy.typing import NDArray

from rewards.worker import RewardMesh, RolloutRig

KINDS = (
    "one triangle",
    "one vertex",
    "no faces",
    "degenerate triangles",
    "flat",
    "line",
    "duplicated vertices",
    "tiny",
    "huge",
    "far away",
    "soup",
    "unused vertices",
    "index out of range",
)


def mesh(rng: np.random.Generator, name: str) -> RewardMesh:
    """A mesh of up to two of KINDS, with 16 random surface points for the decoder."""
    vertices = rng.uniform(-1, 1, (int(rng.integers(3, 40)), 3))
    faces = rng.integers(0, len(vertices), (int(rng.integers(1, 60)), 3))
    for kind in rng.choice(KINDS, size=int(rng.integers(0, 3))):
        match kind:
            case "one triangle":
                faces = faces[:1]
            case "one vertex":
                vertices, faces = vertices[:1], np.zeros((1, 3), dtype=np.int64)
            case "no faces":
                faces = faces[:0]
            case "degenerate triangles":
                faces[:, 2] = faces[:, 1]
                if rng.random() < 0.5 and len(vertices) > 2 and len(faces):
                    faces[0] = [0, 1, 2]
            case "flat":
                vertices[:, rng.integers(3)] = 0.25
            case "line":
                vertices = vertices[:1] * np.linspace(-1, 1, len(vertices))[:, None]
            case "duplicated vertices":
                vertices = vertices[rng.integers(0, len(vertices), len(vertices))]
            case "tiny":
                vertices = vertices * 10.0 ** rng.integers(-300, -3)
            case "huge":
                vertices = vertices * 10.0 ** rng.integers(3, 30)
            case "far away":
                vertices = vertices + 10.0 ** rng.integers(0, 12)
            case "soup":
                vertices = (
                    vertices[faces.reshape(-1)] if faces.size and faces.max() < len(vertices) else vertices
                )
                faces = np.arange(len(vertices) // 3 * 3).reshape(-1, 3)
            case "unused vertices":
                vertices = np.concatenate([vertices, rng.uniform(-5, 5, (7, 3))])
            case "index out of range":
                if faces.size:
                    faces[-1, 0] = len(vertices) + int(rng.integers(0, 3))
    cloud = rng.uniform(-1, 1, (16, 3)).astype(np.float32)
    if np.abs(vertices).max() < 1e38 and rng.random() < 0.5:
        vertices = vertices.astype(np.float32)
    return RewardMesh(name, vertices, faces, cloud, cloud)


def rig(rng: np.random.Generator) -> RolloutRig:
    """A rig of 1 to 200 joints: random trees, chains and stars; joints coincide or lie outside."""
    count = int(rng.choice([1, 2, int(rng.integers(1, 30)), int(rng.integers(30, 201))]))
    shape = rng.choice(["tree", "chain", "star"])
    parents = np.arange(-1, count - 1)
    if shape == "star":
        parents = np.minimum(parents, 0)
    elif shape == "tree":
        parents = np.array([-1, *(int(rng.integers(child)) for child in range(1, count))])
    joints = rng.uniform(-1, 1, (count, 3))
    match rng.choice(["plain", "coincident", "zero bones", "outside", "huge", "tiny", "one place"]):
        case "coincident":
            joints[rng.integers(0, count, count)] = joints[0]
        case "zero bones":
            short = rng.random(count) < 0.5
            short[0] = False
            for child in np.flatnonzero(short):
                joints[child] = joints[parents[child]]
        case "outside":
            joints *= 3
        case "huge":
            joints *= 10.0 ** rng.integers(2, 18)
        case "tiny":
            joints *= 10.0 ** -float(rng.integers(2, 40))
        case "one place":
            joints[:] = joints[0]
    codes = rng.integers(64, size=(count, 2))
    return RolloutRig(joints.astype(np.float32), parents.astype(np.int64), codes)


def weights(rng: np.random.Generator, vertices: int, joints: int) -> NDArray[np.float32]:
    """Raw weights (V, J) in [0, 1]: random, unbound, bound to one joint, equal, or next to nothing."""
    values = rng.random((vertices, joints), dtype=np.float32)
    match rng.choice(["random", "all unbound", "some unbound", "one joint", "equal", "faint", "ones"]):
        case "all unbound":
            values[:] = 0
        case "some unbound":
            values[rng.random(vertices) < 0.5] = 0
        case "one joint":
            values[:] = 0
            values[:, rng.integers(joints)] = 1
        case "equal":
            values[:] = 1 / joints
        case "faint":
            values *= np.float32(1e-38)
        case "ones":
            values[:] = 1
    return values


def tokens(rng: np.random.Generator, vocabulary_size: int, valid: list[int]) -> list[int]:
    """A completion: random tokens, or a valid one with tokens changed, removed or repeated."""
    if rng.random() < 0.2:
        return rng.integers(-2, vocabulary_size + 2, int(rng.integers(0, 120))).tolist()
    row = list(valid)
    for _ in range(int(rng.integers(0, 4))):
        place = int(rng.integers(0, len(row))) if row else 0
        match rng.choice(["change", "remove", "repeat", "swap", "cut", "add"]):
            case "change" if row:
                row[place] = int(rng.integers(0, vocabulary_size))
            case "remove" if row:
                del row[place]
            case "repeat":
                row[place:place] = row[place : place + int(rng.integers(1, 9))]
            case "swap" if row:
                other = int(rng.integers(0, len(row)))
                row[place], row[other] = row[other], row[place]
            case "cut":
                row = row[:place]
            case "add":
                row.insert(place, int(rng.integers(0, vocabulary_size)))
    return row
