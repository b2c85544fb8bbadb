"""Query points of encoders: a random draw of surface points, thinned by farthest point sampling."""

import numpy as np
import torch
from torch import Tensor

# Specification, section 4.
CANDIDATES_PER_QUERY = 4


def draw_candidates(total: int, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `4 count` of `total` point indices, with replacement only if there are fewer points than that.

    Returns `(4 count,)` int64; depends on `rng`, `total` and `count` alone.
    """
    candidates = CANDIDATES_PER_QUERY * count
    return rng.choice(total, candidates, replace=candidates > total)


def farthest_point_sampling(points: Tensor, count: int, start: Tensor | None = None) -> Tensor:
    """Pick `count` points of each cloud, each the farthest from those already picked.

    Squared Euclidean distances in the dtype of `points`; ties go to the first point.

    Args:
        points: `(B, K, 3)`, any frame.
        count: number of picks, 1 to K.
        start: `(B,)` int64 index of each first pick; 0 if not given.

    Returns:
        `(B, count)` int64 indices into K in the order of selection.

    Raises:
        ValueError: `points` has the wrong shape or fewer than `count` points.
    """
    if points.ndim != 3 or points.shape[-1] != 3:
        raise ValueError(f"points must be (B, K, 3), got {tuple(points.shape)}")
    batch, total, _ = points.shape
    if not 1 <= count <= total:
        raise ValueError(f"cannot pick {count} of {total} points")
    picked = torch.empty(batch, count, dtype=torch.int64, device=points.device)
    current = torch.zeros(batch, dtype=torch.int64, device=points.device) if start is None else start
    rows = torch.arange(batch, device=points.device)
    nearest = points.new_full((batch, total), float("inf"))
    for step in range(count):
        picked[:, step] = current
        offset = points - points[rows, current, None]
        nearest = torch.minimum(nearest, offset.square().sum(-1))
        current = nearest.argmax(dim=1)
    return picked


@torch.no_grad()
def select_queries(
    points: Tensor, count: int, seed: int | None = 0, rng: np.random.Generator | None = None
) -> Tensor:
    """Select the points of each cloud that become an encoder's query tokens.

    Args:
        points: `(B, N, 3)`, mesh frame; distances are computed in float32.
        count: number of queries.
        seed: seed of the draw; farthest point sampling starts at the first drawn point.
        rng: generator of the draw and of random starts, for training; replaces `seed`.

    Returns:
        `(B, count)` int64 indices into N; the draw is shared by the batch, the sampling is per cloud.

    Raises:
        ValueError: `points` has another shape.
    """
    return candidates_and_queries(points, count, seed, rng)[1]


@torch.no_grad()
def candidates_and_queries(
    points: Tensor, count: int, seed: int | None = 0, rng: np.random.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """The drawn candidates `(4 count,)` int64 and the result of `select_queries`."""
    if points.ndim != 3 or points.shape[-1] != 3:
        raise ValueError(f"points must be (B, N, 3), got {tuple(points.shape)}")
    training = rng is not None
    generator = rng if rng is not None else np.random.default_rng(seed)
    candidates = torch.from_numpy(draw_candidates(points.shape[1], count, generator)).to(points.device)
    start = None
    if training:
        first = generator.integers(0, len(candidates), points.shape[0])
        start = torch.from_numpy(first).to(points.device)
    local = farthest_point_sampling(points[:, candidates].float(), count, start)
    return candidates, candidates[local]


def gather_points(values: Tensor, index: Tensor) -> Tensor:
    """Select rows: `(B, N, D)` values at `(B, K)` int64 indices to `(B, K, D)`."""
    return values.gather(1, index[..., None].expand(-1, -1, values.shape[-1]))
