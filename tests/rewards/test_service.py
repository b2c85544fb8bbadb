"""The in-process reward service."""

import numpy as np
import pytest

from rewards import REWARD_NAMES
from rewards.service import InlineRewardService
from tests.rewards.rollouts import SETTINGS, flat_mesh, group, meshes, tiny_vae


@pytest.fixture(scope="module")
def service() -> InlineRewardService:
    service = InlineRewardService(tiny_vae(), SETTINGS)
    assert service.prepare_meshes(meshes(3)) == [None, None, None]
    return service


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


def test_closing_is_harmless(service):
    service.close()
    assert service.submit(0, group(0, 1), 0).result().scores
