import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from policy.layers.queries import (
    candidates_and_queries,
    draw_candidates,
    farthest_point_sampling,
    gather_points,
    select_queries,
)


def plain_fps(points: np.ndarray, count: int, start: int) -> list[int]:
    picked = [start]
    while len(picked) < count:
        distance = ((points[:, None] - points[picked][None]) ** 2).sum(-1).min(1)
        picked.append(int(distance.argmax()))
    return picked


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 40), st.data())
def test_sampling_equals_the_plain_algorithm(batch, total, data):
    count = data.draw(st.integers(1, total))
    seed = data.draw(st.integers(0, 2**31))
    rng = np.random.default_rng(seed)
    # Coarse coordinates make ties and duplicates frequent: the first farthest point must win.
    points = rng.integers(-2, 3, (batch, total, 3)).astype(np.float32) / 2
    start = rng.integers(0, total, batch)
    found = farthest_point_sampling(torch.from_numpy(points), count, torch.from_numpy(start))
    assert found.tolist() == [plain_fps(points[b], count, int(start[b])) for b in range(batch)]


def test_indices_of_the_released_code(golden):
    for points, count, seed, name in [
        (golden["points"], 16, 0, "mesh"),
        (golden["points"][: int(golden["meshsmall_n"])], 16, 0, "meshsmall"),
        (golden["points"], 24, int(golden["cond_seed"]), "cond"),
    ]:
        drawn, chosen = candidates_and_queries(points[None], count, seed)
        assert drawn.tolist() == golden[f"{name}_choice"].tolist()
        local = farthest_point_sampling(points[drawn][None], count)[0]
        assert local.tolist() == golden[f"{name}_fps_local"].tolist()
        assert chosen[0].tolist() == drawn[local].tolist()
    assert select_queries(golden["points"][None], 16)[0].tolist() == golden["mesh_query_index"].tolist()


def test_batch_shares_the_draw_but_not_the_sampling(golden):
    points = golden["meshbatch_points"]
    drawn, _ = candidates_and_queries(points, 16)
    local = farthest_point_sampling(points[:, drawn], 16)
    flat = local + 64 * torch.arange(2)[:, None]  # 4 T = 64 candidates per cloud
    assert flat.flatten().tolist() == golden["meshbatch_fps_flat"].tolist()


def test_few_points_are_drawn_with_replacement():
    assert len(set(draw_candidates(10, 5, np.random.default_rng(0)).tolist())) < 20
    assert len(set(draw_candidates(20, 5, np.random.default_rng(0)).tolist())) == 20


def test_training_draw_follows_its_generator():
    points = torch.randn(3, 200, 3, generator=torch.Generator().manual_seed(0))
    first = select_queries(points, 8, rng=np.random.default_rng(1))
    again = select_queries(points, 8, rng=np.random.default_rng(1))
    other = select_queries(points, 8, rng=np.random.default_rng(2))
    assert first.tolist() == again.tolist()
    assert first.tolist() != other.tolist()
    # One draw for the batch, but every cloud starts at its own random candidate.
    drawn, chosen = candidates_and_queries(points, 8, rng=np.random.default_rng(1))
    assert len({drawn.tolist().index(start) for start in chosen[:, 0].tolist()}) > 1


def test_gather():
    values = torch.arange(12).view(2, 3, 2)
    assert gather_points(values, torch.tensor([[2, 0], [1, 1]])).tolist() == [
        [[4, 5], [0, 1]],
        [[8, 9], [8, 9]],
    ]


def test_too_many_points_requested():
    with pytest.raises(ValueError, match="cannot pick 5 of 4"):
        farthest_point_sampling(torch.zeros(1, 4, 3), 5)
