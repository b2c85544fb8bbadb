"""Several data sets mixed by weight, such as 70/20/10: what stands at an index depends on nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Generic, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from data.formats.rig_npz import RiggedMesh
from data.mesh import MeshError
from data.sets.prepared import PreparedRigs

T = TypeVar("T")

# Shares are exact to one in this many.
BLOCK = 1000


@dataclass(frozen=True)
class MixtureSource(Generic[T]):
    """A data set and its weight; only the weights' ratios count. `name` is for messages."""

    name: str
    items: Sequence[T]
    weight: float


class Mixture(Generic[T]):
    """An endless, repeatable order of draws from several data sets.

    Each run of 1,000 indices, beginning at a multiple of it, holds every source in its exact share (rounded
    to one in 1,000), shuffled. A source's own items come in shuffled passes: each item once before any comes
    again. Index, seed, weights and the sources' lengths decide alone, so a resumed run and every process of a
    distributed one see the same draws. Only the drawn item is read.
    Raises MeshError if there is no source, one with a positive weight is empty, a weight is negative or not
    finite, all are 0, or a positive one is below one in 1,000; a source of weight 0 is never drawn.
    """

    def __init__(self, sources: Sequence[MixtureSource[T]], seed: int = 0) -> None:
        self.sources = tuple(sources)
        self.seed = seed
        self.counts = _counts([source.weight for source in sources], [source.name for source in sources])
        for source, count in zip(self.sources, self.counts, strict=True):
            if count and not len(source.items):
                raise MeshError(f"{source.name}: it holds nothing to draw from; add rigs or give it weight 0")

    def place(self, index: int) -> tuple[int, int]:
        """(source, item) at an index from 0: places in `sources` and in that source's items."""
        if index < 0:
            raise IndexError(f"index {index} is negative; a mixture has no end to count from")
        block, offset = divmod(index, BLOCK)
        order, ranks = _shuffled_block(self.counts, self.seed, block)
        source = int(order[offset])
        draw = block * self.counts[source] + int(ranks[offset])
        number, step = divmod(draw, len(self.sources[source].items))
        return source, int(_shuffled_pass(len(self.sources[source].items), self.seed, source, number)[step])

    def __getitem__(self, index: int) -> T:
        source, item = self.place(index)
        return self.sources[source].items[item]


def prepared_mixture(
    folders: Sequence[str | Path],
    weights: Sequence[float] | None = None,
    split: Literal["train", "eval"] | None = "train",
    seed: int = 0,
) -> Mixture[RiggedMesh]:
    """Mix folders made by `python -m data.prepare`; without weights each counts by its number of rigs.

    Raises MeshError if a folder has no rigs in the split or the weights do not fit, as `Mixture` does.
    """
    sets = [PreparedRigs(folder, split) for folder in folders]
    given = [float(len(one)) for one in sets] if weights is None else list(weights)
    if len(given) != len(sets):
        raise MeshError(f"mixture: {len(given)} weights for {len(sets)} folders; give one each")
    return Mixture(
        [
            MixtureSource(str(folder), one, weight)
            for folder, one, weight in zip(folders, sets, given, strict=True)
        ],
        seed,
    )


@lru_cache(maxsize=16)
def _shuffled_block(
    counts: tuple[int, ...], seed: int, block: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Sources at the block's indices, and how often each was drawn in the block before."""
    order = np.repeat(np.arange(len(counts)), counts)
    np.random.default_rng([seed, 0, block]).shuffle(order)
    ranks = np.empty_like(order)
    for source, count in enumerate(counts):
        ranks[order == source] = np.arange(count)
    return order, ranks


@lru_cache(maxsize=64)
def _shuffled_pass(length: int, seed: int, source: int, number: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, 1, source, number]).permutation(length)


def _counts(weights: Sequence[float], names: Sequence[str]) -> tuple[int, ...]:
    """How many of BLOCK draws each source gets: largest remainders, ties to the first."""
    values = np.asarray(weights, dtype=np.float64)
    if not len(values):
        raise MeshError("mixture: it has no sources; name at least one data set")
    if not np.isfinite(values).all() or (values < 0).any():
        raise MeshError(f"mixture: the weights {list(weights)} must be finite and not negative")
    if not values.any():
        raise MeshError("mixture: all weights are 0; give one above 0")
    values = values / values.max()
    shares = values / values.sum() * BLOCK
    small = np.flatnonzero((values > 0) & (shares < 1 - 1e-9))
    if len(small):
        raise MeshError(
            f"mixture: the weight of {names[small[0]]} is below one in {BLOCK}; raise it or use 0"
        )
    counts = np.floor(shares + 1e-9).astype(int)
    remainders = shares - counts
    for source in np.argsort(-remainders, kind="stable")[: BLOCK - int(counts.sum())]:
        counts[source] += 1
    return tuple(int(count) for count in counts)
