"""Mixtures: draws from several data sets by weight, such as 70/20/10, reproducible at every index."""

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

# Indices per block; every source has its exact share of each block, rounded to 1 / BLOCK.
BLOCK = 1000


@dataclass(frozen=True)
class MixtureSource(Generic[T]):
    """A data set and its relative weight. `name` appears in error messages."""

    name: str
    items: Sequence[T]
    weight: float


class Mixture(Generic[T]):
    """An endless, reproducible sequence of draws from several data sets.

    Each block of 1,000 indices contains every source in its exact share (rounded to 1/1,000), shuffled. Each
    source is drawn in shuffled epochs: every item once before any is repeated. The draw depends only on the
    index, the seed, the weights and the lengths of the sources, so a resumed run and every process of a
    distributed run see the same draws. Only the drawn item is loaded. A source of weight 0 is never drawn.
    Raises MeshError if there is no source, a source with a positive weight is empty, a weight is negative or
    not finite, all weights are 0, or a positive weight has a share below 1/1,000.
    """

    def __init__(self, sources: Sequence[MixtureSource[T]], seed: int = 0) -> None:
        self.sources = tuple(sources)
        self.seed = seed
        self.counts = _counts([source.weight for source in sources], [source.name for source in sources])
        for source, count in zip(self.sources, self.counts, strict=True):
            if count and not len(source.items):
                raise MeshError(f"{source.name}: the source is empty; add rigs or set its weight to 0")

    def place(self, index: int) -> tuple[int, int]:
        """(source, item) at an index >= 0: indices into `sources` and into that source's items."""
        if index < 0:
            raise IndexError(
                f"index {index} is negative; a mixture is endless, so use an index of at least 0"
            )
        block, offset = divmod(index, BLOCK)
        order, ranks = _shuffled_block(self.counts, self.seed, block)
        source = int(order[offset])
        draw = block * self.counts[source] + int(ranks[offset])
        number, step = divmod(draw, len(self.sources[source].items))
        return source, int(_shuffled_epoch(len(self.sources[source].items), self.seed, source, number)[step])

    def __getitem__(self, index: int) -> T:
        source, item = self.place(index)
        return self.sources[source].items[item]


def prepared_mixture(
    folders: Sequence[str | Path],
    weights: Sequence[float] | None = None,
    split: Literal["train", "eval"] | None = "train",
    seed: int = 0,
) -> Mixture[RiggedMesh]:
    """Mix folders made by `python -m data.prepare`; by default weighted by their number of rigs.

    Raises MeshError if a folder has no rigs in the split or the weights are invalid (see `Mixture`).
    """
    sets = [PreparedRigs(folder, split) for folder in folders]
    given = [float(len(one)) for one in sets] if weights is None else list(weights)
    if len(given) != len(sets):
        raise MeshError(f"mixture: {len(given)} weights for {len(sets)} folders; pass one per folder")
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
    """The source at each index of the block, and how often it was drawn earlier in the block."""
    order = np.repeat(np.arange(len(counts)), counts)
    np.random.default_rng([seed, 0, block]).shuffle(order)
    ranks = np.empty_like(order)
    for source, count in enumerate(counts):
        ranks[order == source] = np.arange(count)
    return order, ranks


@lru_cache(maxsize=64)
def _shuffled_epoch(length: int, seed: int, source: int, number: int) -> NDArray[np.int64]:
    """The order (length,) of a source's items in its epoch `number`."""
    return np.random.default_rng([seed, 1, source, number]).permutation(length)


def _counts(weights: Sequence[float], names: Sequence[str]) -> tuple[int, ...]:
    """How many of BLOCK draws each source gets (largest remainder method, ties to the first)."""
    values = np.asarray(weights, dtype=np.float64)
    if not len(values):
        raise MeshError("mixture: no sources; pass at least one data set")
    if not np.isfinite(values).all() or (values < 0).any():
        raise MeshError(f"mixture: the weights {list(weights)} must be finite and non-negative")
    if not values.any():
        raise MeshError("mixture: all weights are 0; make at least one positive")
    values = values / values.max()
    shares = values / values.sum() * BLOCK
    small = np.flatnonzero((values > 0) & (shares < 1 - 1e-9))
    if len(small):
        raise MeshError(
            f"mixture: the share of {names[small[0]]} is below 1/{BLOCK}; raise its weight or set it to 0"
        )
    counts = np.floor(shares + 1e-9).astype(int)
    remainders = shares - counts
    for source in np.argsort(-remainders, kind="stable")[: BLOCK - int(counts.sum())]:
        counts[source] += 1
    return tuple(int(count) for count in counts)
