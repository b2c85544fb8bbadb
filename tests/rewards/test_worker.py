"""What the service's backends share: mesh keys, preparing, scoring, invalid rollouts, the LRU cache."""

import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewards import REWARD_NAMES, MeshRewardError, RewardError, RewardSettings, pose_seed, score_rig
from rewards.poses import random_rotations
from rewards.score import ScoringMesh
from rewards.worker import (
    INVALID,
    LRUCache,
    RewardMesh,
    RolloutRig,
    RolloutScore,
    check_prepared,
    merge_invalid,
    prepare,
    score_rollouts,
    with_progress,
)
from tests.rewards.rollouts import SETTINGS, flat_mesh, group, meshes, rig

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def mesh() -> RewardMesh:
    return meshes(1)[0]


@pytest.fixture(scope="module")
def ready(mesh) -> ScoringMesh:
    prepared = prepare(mesh, SETTINGS)
    assert isinstance(prepared, ScoringMesh)
    return prepared


def weights_for(ready: ScoringMesh, rigs: list[RolloutRig]) -> list[np.ndarray]:
    rng = np.random.default_rng(5)
    return [rng.random((len(ready.vertices), len(one.joints)), dtype=np.float32) for one in rigs]


# ---------------------------------------------------------------- mesh keys


def changed(array: np.ndarray) -> np.ndarray:
    other = array.copy()
    other.flat[-1] = other.flat[0]
    return other


def test_equal_meshes_have_equal_keys(mesh):
    same = RewardMesh(
        mesh.name, mesh.vertices.copy(), np.asfortranarray(mesh.faces), mesh.points[:], mesh.normals.copy()
    )
    assert same is not mesh
    assert same.key == mesh.key
    assert pickle.loads(pickle.dumps(mesh)).key == mesh.key


@pytest.mark.parametrize("field", ["vertices", "faces", "points", "normals"])
def test_any_changed_number_changes_the_key(mesh, field):
    other = replace(mesh, **{field: changed(getattr(mesh, field))})
    assert other.key != mesh.key


def test_names_and_shapes_change_the_key(mesh):
    other_cut = replace(
        mesh, points=mesh.points[:-1], normals=np.concatenate([mesh.points[-1:], mesh.normals])
    )
    keys = {mesh.key, replace(mesh, name="b").key, other_cut.key}
    assert len(keys) == 3


# ---------------------------------------------------------------- preparing


def test_a_mesh_is_prepared_with_its_name(mesh, ready):
    assert ready.name == mesh.name
    assert len(ready.vertices) <= SETTINGS.max_scoring_vertices


def test_a_mesh_that_cannot_be_scored_is_reported_by_name():
    assert prepare(flat_mesh("spoon"), SETTINGS) == (
        "spoon: the mesh has no triangle with area; pass a surface mesh"
    )


def test_only_prepared_meshes_may_be_used():
    check_prepared(1, ["no faces", None])
    with pytest.raises(ValueError, match="mesh 0 cannot be scored: no faces"):
        check_prepared(0, ["no faces", None])
    for missing in (2, -1):
        with pytest.raises(
            IndexError, match=r"was not prepared; prepare it before scoring \(2 meshes are prepared\)"
        ):
            check_prepared(missing, ["no faces", None])


def test_progress_yields_everything_and_shows_no_bar_when_fast(capsys):
    assert list(with_progress([3, 1, 2], 3)) == [3, 1, 2]
    assert capsys.readouterr() == ("", "")


# ---------------------------------------------------------------- scoring


def test_scores_are_those_of_score_rig_under_the_groups_poses(ready):
    rigs = [rig(np.random.default_rng(seed), joints) for seed, joints in enumerate((3, 7, 1))]
    weights = weights_for(ready, rigs)
    seed = pose_seed(1, "mesh", 2)
    scores = score_rollouts(ready, rigs, weights, seed, SETTINGS)
    turns = SETTINGS.rotations(7, seed)
    for one, rig_weights, score in zip(rigs, weights, scores, strict=True):
        expected = score_rig(ready, one.joints, one.parents, rig_weights, turns, SETTINGS)
        assert score == RolloutScore(expected.rewards, True, expected.diagnostics)
    assert score_rollouts(ready, rigs, weights, seed + 1, SETTINGS) != scores


def test_a_score_does_not_depend_on_the_others_in_the_chunk(ready):
    rigs = [one for one in group(0, 6) if one is not None]
    weights = weights_for(ready, rigs)
    together = score_rollouts(ready, rigs, weights, 9, SETTINGS)
    for k in range(len(rigs)):
        assert score_rollouts(ready, rigs[k:], weights[k:], 9, SETTINGS) == together[k:]


def test_recorded_poses_follow_each_rigs_hierarchy(ready, tmp_path):
    recorded = random_rotations(4, 3, 40.0, seed=1)
    np.savez(tmp_path / "poses.npz", rotations=recorded, parents=np.array([-1, 0, 0]))
    settings = replace(SETTINGS, pose_file=str(tmp_path / "poses.npz"), poses=2)
    rigs = [rig(np.random.default_rng(seed), joints) for seed, joints in enumerate((3, 7, 1))]
    rigs.append(RolloutRig(rigs[0].joints, np.array([1, 2, 0]), rigs[0].codes))  # a cycle
    weights = weights_for(ready, rigs)
    *scores, bad = score_rollouts(ready, rigs, weights, 5, settings)
    for one, rig_weights, score in zip(rigs, weights, scores, strict=False):
        turns = settings.rotations(len(one.joints), 5, one.parents)
        expected = score_rig(ready, one.joints, one.parents, rig_weights, turns, settings)
        assert score == RolloutScore(expected.rewards, True, expected.diagnostics)
    assert not bad.valid


def test_nothing_to_score(ready):
    assert score_rollouts(ready, [], [], 0, SETTINGS) == []


def test_a_rig_that_cannot_be_scored_is_the_policys_fault_and_its_own(ready):
    good = rig(np.random.default_rng(0), 4)
    lost = replace(good, joints=np.full((4, 3), np.nan, dtype=np.float32))
    circle = replace(good, parents=np.array([-1, 2, 3, 1]))
    weights = weights_for(ready, [good, good, good])
    scores = score_rollouts(ready, [lost, good, circle], weights, 3, SETTINGS)
    assert [score.valid for score in scores] == [False, True, False]
    assert [replace(score, reason=None) for score in scores[::2]] == [INVALID, INVALID]
    assert "joint 0 has a coordinate that is not finite" in scores[0].reason
    assert "form a cycle" in scores[2].reason
    assert scores[1] == score_rollouts(ready, [good], weights[1:2], 3, SETTINGS)[0]


def test_weights_for_another_rig_are_the_callers_fault(ready):
    rigs = [rig(np.random.default_rng(0), 4)]
    with pytest.raises(RewardError) as caught:
        score_rollouts(ready, rigs, weights_for(ready, [rig(np.random.default_rng(0), 3)]), 0, SETTINGS)
    assert not isinstance(caught.value, MeshRewardError)


@given(st.lists(st.booleans(), max_size=12))
def test_invalid_rollouts_get_zeros(present):
    one = rig(np.random.default_rng(0), 1)
    scores = [RolloutScore({"coverage": float(k)}, True) for k in range(sum(present))]
    merged = merge_invalid([one if flag else None for flag in present], scores)
    assert [score.valid for score in merged] == present
    assert [score for score in merged if score.valid] == scores
    for score in merged:
        assert score.valid or score.rewards == dict.fromkeys(REWARD_NAMES, 0.0)


# ---------------------------------------------------------------- memory


def test_lru_cache_makes_a_value_once_and_evicts_the_least_recently_used():
    made = []
    cache: LRUCache[str] = LRUCache(2)

    def value(key: str) -> str:
        return cache.get(key, lambda: made.append(key) or key.upper())

    assert [value(key) for key in "aabb"] == ["A", "A", "B", "B"]
    assert made == ["a", "b"]
    value("a")  # b is now the least recently used
    value("c")
    assert made == ["a", "b", "c"]
    value("a")
    assert made == ["a", "b", "c"]
    value("b")
    assert made == ["a", "b", "c", "b"]


def test_scoring_workers_load_neither_torch_nor_the_references():
    script = (
        "import sys, rewards.ray_actors, rewards.ray_service\n"
        "print([name for name in sys.modules if 'torch' in name or name == 'rewards.references'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_importing_the_package_is_light():
    script = (
        "import sys, rewards\n"
        "print(sorted(sys.modules))\n"
        "print(sorted(name for name in sys.modules if name.split('.')[0] == 'data'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    modules, own = done.stdout.splitlines()
    for heavy in ("torch", "ray", "trimesh", "pygltflib", "scipy.spatial", "matplotlib", "policy"):
        assert f"'{heavy}'" not in modules
    assert own == "['data', 'data.compiled', 'data.file_content', 'data.mesh', 'data.welding']"


def test_a_mesh_is_prepared_with_the_given_settings(mesh):
    assert prepare(mesh, RewardSettings(resolution=12)).grid.occupied.shape < (13, 13, 13)


def test_lru_cache_may_be_shared_by_threads():
    """Every thread gets the value of its key, also of keys that another evicts at that moment."""
    cache: LRUCache[str] = LRUCache(2)
    begin = threading.Barrier(4)

    def read(thread: int) -> bool:
        begin.wait()
        keys = [str((thread + turn) % 5) for turn in range(500)]
        return all(cache.get(key, lambda key=key: f"value {key}") == f"value {key}" for key in keys)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(read, range(4)))


def test_two_threads_that_miss_at_once_keep_one_value():
    cache: LRUCache[object] = LRUCache(2)
    both = threading.Barrier(2)

    def make() -> object:
        both.wait(60)  # neither has stored its value yet
        return object()

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda _: cache.get("a", make), range(2))
    assert first is second
