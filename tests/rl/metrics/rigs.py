"""Small rigs for tests of metrics."""

import numpy as np

from data.rig import Rig


def rig(joints, parents, bound):
    """A rig whose vertex v hangs on joint bound[v] alone."""
    return Rig(np.array(joints, dtype=np.float32), np.array(parents), np.eye(len(joints))[bound])


def random_rig(rng, joints, vertices):
    parents = np.array([-1] + [rng.integers(0, i) for i in range(1, joints)])
    return Rig(rng.uniform(-1, 1, (joints, 3)).astype(np.float32), parents, rng.random((vertices, joints)))
