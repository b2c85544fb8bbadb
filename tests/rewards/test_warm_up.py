"""After the warm-up of one process, no scoring worker compiles anything."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Everything a scoring worker does, on read-only arrays as from Ray's object store and on writable ones.
WORKER = """
import pickle, sys
import numpy as np
from numba.core.dispatcher import Dispatcher
from data import make_creature, sample_surface
from rewards.score import RewardSettings
from rewards.warm_up import KERNELS, compile_kernels
from rewards.worker import RewardMesh, RolloutRig, prepare, score_rollouts

def from_store(value):
    buffers = []
    data = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    return pickle.loads(data, buffers=[bytes(buffer.raw()) for buffer in buffers])

settings = RewardSettings(interior=sys.argv[1], guards=tuple(filter(None, sys.argv[3].split(","))))
compile_kernels(settings)
if sys.argv[2] == "score":
    creature = make_creature(3)
    points = np.zeros((4, 3), np.float32)
    for change in (from_store, lambda value: value):
        for dtype, integer in ((np.float32, np.int64), (np.float64, np.int32)):
            vertices = creature.mesh.vertices.astype(dtype)
            mesh = RewardMesh("mesh", vertices, creature.mesh.faces.astype(integer), points, points)
            ready = change(prepare(change(mesh), settings))
            joints, parents = creature.rig.joints.astype(np.float32), creature.rig.parents.astype(np.int64)
            rig = RolloutRig(joints, parents, None)
            weights = np.ascontiguousarray(creature.rig.weights[ready.source].astype(np.float32))
            for order in ("C", "F"):
                skin = change([np.array(weights, order=order)])
                assert score_rollouts(ready, [change(rig)], skin, 0, settings)[0].valid

found = {
    value
    for name, module in list(sys.modules.items()) if name.startswith(("data.", "rewards."))
    for value in vars(module).values() if isinstance(value, Dispatcher) and "creatures" not in name
}
assert set(KERNELS) <= found
print(*sorted(each.py_func.__name__ for each in found if sum(each.stats.cache_misses.values())))
"""


def compiled(folder: Path, interior: str, then: str, guards: str = "") -> set[str]:
    """The kernels that a new process compiles with the cache in `folder`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NUMBA_CACHE_DIR": str(folder)}
    command = [sys.executable, "-c", WORKER, interior, then, guards]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return set(result.stdout.split())


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("numba")


def test_the_warm_up_compiles_and_scoring_after_it_does_not(cache):
    names = compiled(cache, "projection", "stop")
    assert {"mark_surface", "fill_projection", "coverage_sum", "skin_vertices"} <= names
    assert compiled(cache, "projection", "score") == set()


def test_another_interior_adds_only_its_own_kernel(cache):
    compiled(cache, "projection", "stop")
    assert compiled(cache, "flood", "stop") == {"fill_flood"}
    assert compiled(cache, "flood", "score") == set()


def test_a_guard_adds_only_its_own_kernels(cache):
    compiled(cache, "projection", "stop")
    both = "volume_preservation,weight_locality"
    assert compiled(cache, "projection", "stop", both) == {"kept_volume", "owning_bones", "leaked_shares"}
    assert compiled(cache, "projection", "score", both) == set()
