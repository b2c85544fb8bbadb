"""The in-process reward service."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.welding import mesh_places, weld
from rewards import REWARD_NAMES, prepare_scoring_mesh, score_rig
from rewards.service import InlineRewardService
from rewards.skin_decoder import SkinDecoder
from rewards.worker import RewardMesh
from tests.rewards.rollouts import SETTINGS, flat_mesh, group, meshes, tiny_vae
from tests.seams import split_at_random


@pytest.fixture(scope="module")
def service() -> InlineRewardService:
    service = InlineRewardService(tiny_vae(), SETTINGS)
    assert service.prepare_meshes(meshes(3)) == [None, None, None]
    return service


def surface(mesh: RewardMesh) -> tuple[np.ndarray, np.ndarray]:
    return mesh.vertices, mesh.faces


def test_scores_are_in_order_with_zeros_for_invalid_rollouts(service):
    rigs = group(0, 9, invalid=0.4)
    result = service.submit(1, rigs, 7).result()
    assert [score.valid for score in result.scores] == [rig is not None for rig in rigs]
    assert {True, False} == {score.valid for score in result.scores}
    for score in result.scores:
        assert score.rewards is not None
        assert tuple(score.rewards) == REWARD_NAMES
        assert all(0 <= value <= 1 for value in score.rewards.values())
        assert score.valid or (set(score.rewards.values()), score.diagnostics) == ({0.0}, {})
    assert result.failure is None
    assert result.decode_seconds > 0
    assert result.score_seconds > 0


def test_the_result_is_cached_and_depends_on_mesh_seed_and_rigs(service):
    rigs = group(0, 3)
    pending = service.submit(0, rigs, 7)
    assert pending.result() is pending.result()
    again = service.submit(0, rigs, 7).result()
    assert again.scores == pending.result().scores
    others = [service.submit(1, rigs, 7), service.submit(0, rigs, 8), service.submit(0, group(1, 3), 7)]
    for other in others:
        assert other.result().scores != again.scores


def test_groups_without_a_valid_rig(service):
    assert service.submit(0, [], 0).result().scores == []
    result = service.submit(0, [None, None], 0).result()
    assert [score.rewards for score in result.scores] == [dict.fromkeys(REWARD_NAMES, 0.0)] * 2
    assert result.failure is None


def test_meshes_that_cannot_be_scored_are_reported_and_refused():
    service = InlineRewardService(tiny_vae(), SETTINGS)
    reasons = service.prepare_meshes([flat_mesh("spoon"), *meshes(1)])
    assert reasons == ["spoon: the mesh has no triangle with area; pass a surface mesh", None]
    with pytest.raises(ValueError, match="mesh 0 cannot be scored: spoon: "):
        service.submit(0, group(0, 2), 0)
    with pytest.raises(IndexError, match="mesh 2 was not prepared; prepare it"):
        service.submit(2, group(0, 2), 0)
    assert len(service.submit(1, group(0, 2), 0).result().scores) == 2


def test_meshes_prepared_later_replace_the_earlier_ones():
    first, second = meshes(2)
    rigs = group(3, 4)
    service = InlineRewardService(tiny_vae(), SETTINGS)
    service.prepare_meshes([first])
    before = service.submit(0, rigs, 5).result().scores
    service.prepare_meshes([second])
    after = service.submit(0, rigs, 5).result().scores
    assert after != before
    fresh = InlineRewardService(tiny_vae(), SETTINGS)
    fresh.prepare_meshes([second])
    assert fresh.submit(0, rigs, 5).result().scores == after
    service.prepare_meshes([second, first])
    assert service.submit(1, rigs, 5).result().scores == before


def test_codes_that_do_not_fit_the_joints_are_the_callers_fault(service):
    rig = group(0, 1)[0]
    assert rig is not None
    wrong = type(rig)(rig.joints, rig.parents, np.concatenate([rig.codes, rig.codes]))
    with pytest.raises(ValueError, match="weights"):
        service.submit(0, [wrong], 0)


# ---------------------------------------------------------------- the weights to write


def test_the_weights_are_those_behind_the_scores(service):
    rigs = group(2, 5, invalid=0.4)
    scores, weights = service.score(1, rigs, 7)
    assert scores.scores == service.submit(1, rigs, 7).result().scores
    assert [one is None for one in weights] == [rig is None for rig in rigs]
    scoring = prepare_scoring_mesh(*surface(meshes(3)[1]), SETTINGS)
    for rig, own, score in zip(rigs, weights, scores.scores, strict=True):
        if rig is not None:
            assert own.shape == (len(scoring.vertices), len(rig.joints))
            turns = SETTINGS.rotations(len(rig.joints), 7)
            assert score_rig(scoring, rig.joints, rig.parents, own, turns, SETTINGS).rewards == score.rewards
    with pytest.raises(IndexError, match="mesh 9 was not prepared"):
        service.score(9, rigs, 7)


def test_vertices_get_the_scored_weights_and_others_their_places(service):
    """A mesh of which 300 vertices are scored: those bit by bit, the others as a decoder gives them."""
    mesh = meshes(3)[1]
    rigs = group(2, 3)
    weights = service.score(1, rigs, 7)[1]
    scoring = prepare_scoring_mesh(*surface(mesh), SETTINGS)
    assert len(scoring.source) <= 300 < len(mesh.vertices)
    decoder = SkinDecoder(tiny_vae())
    for rig, own in zip(rigs, weights, strict=True):
        written = service.vertex_weights(1, rig, own)
        assert written.shape == (len(mesh.vertices), len(rig.joints))
        assert np.array_equal(written[scoring.source], own)
        places = mesh_places(*surface(mesh))
        expected = decoder.decode(mesh, places.points, places.normals, [rig.codes])[0][places.of_vertex]
        np.testing.assert_allclose(written, expected, atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_splitting_vertices_changes_no_weight(seed):
    """All vertices of a place have one row of weights, that of the same place of the unsplit mesh."""
    rng = np.random.default_rng(seed)
    whole = meshes(1)[0]
    vertices, faces, original = split_at_random(*surface(whole), rng)
    # Copies of vertices that no face uses, and one on a face without area alone.
    vertices = np.concatenate([vertices, vertices[:20]])
    original = np.concatenate([original, original[:20]])
    faces = np.concatenate([faces, [[len(vertices) - 1, len(vertices) - 1, 0]]])
    # Everything is scored, and the rigs are decoded together: only the order of the places differs.
    service = InlineRewardService(tiny_vae(), replace(SETTINGS, max_scoring_vertices=10**6))
    split = replace(whole, vertices=vertices, faces=faces)
    assert service.prepare_meshes([whole, split]) == [None, None]
    rigs = group(seed % 97, 2)
    both = []
    for mesh in (0, 1):
        scored = service.score(mesh, rigs, 7)[1][1]
        both.append(service.vertex_weights(mesh, rigs[1], scored))
    first, place = weld(vertices)
    assert np.array_equal(both[1], both[1][first[place]])
    np.testing.assert_allclose(both[1], both[0][original], atol=1e-4)


def test_closing_is_harmless(service):
    service.close()
    assert service.submit(0, group(0, 1), 0).result().scores
