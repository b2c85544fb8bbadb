"""Small meshes and rigs with known properties, for the tests of the rewards."""

import numpy as np

CUBE_CORNERS = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 1)], dtype=np.float64)
CUBE_FACES = np.array(
    [
        [0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5],  # x = 0 and x = 1
        [0, 4, 5], [0, 5, 1], [2, 3, 7], [2, 7, 6],  # y = 0 and y = 1
        [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3],  # z = 0 and z = 1
    ]
)  # fmt: skip


def box(size=(1.0, 1.0, 1.0), low=(0.0, 0.0, 0.0)):
    """A closed box: vertices (8, 3), faces (12, 3)."""
    return CUBE_CORNERS * size + low, CUBE_FACES.copy()


def blob(rng, faces=60, spread=0.2):
    """A triangle soup of random small triangles in [-1, 1]: vertices (3F, 3), faces (F, 3)."""
    middle = rng.uniform(-1, 1, (faces, 1, 3))
    corners = middle + rng.normal(0, spread, (faces, 3, 3))
    return corners.reshape(-1, 3), np.arange(3 * faces).reshape(-1, 3)


def random_rig(rng, joints, vertices):
    """Joints (J, 3) in [-1, 1], parents (J,) with parents[i] < i, weights (S, J) float32 with zero rows."""
    parents = np.array([-1] + [rng.integers(0, i) for i in range(1, joints)], dtype=np.int64)
    weights = rng.random((vertices, joints), dtype=np.float32) * (rng.random((vertices, joints)) < 0.4)
    return rng.uniform(-1, 1, (joints, 3)), parents, weights.astype(np.float32)
