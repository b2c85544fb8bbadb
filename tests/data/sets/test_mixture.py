"""Mixtures: exact shares, shuffled epochs, the same draws from any starting point."""

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.creatures import make_creature
from data.formats.rig_npz import RiggedMesh, write_rig_npz
from data.mesh import MeshError
from data.prepare import PrepareSettings, prepare
from data.sets.mixture import BLOCK, Mixture, MixtureSource, prepared_mixture


def mixture(lengths: list[int], weights: list[float], seed: int = 0) -> Mixture[tuple[int, int]]:
    """Items are (source, item), so that a draw shows its source."""
    return Mixture(
        [
            MixtureSource(f"set {source}", [(source, item) for item in range(length)], weight)
            for source, (length, weight) in enumerate(zip(lengths, weights, strict=True))
        ],
        seed,
    )


def test_70_20_10() -> None:
    mixed = mixture([50, 3, 7], [70, 20, 10])
    for block in (0, 1, 5):
        drawn = Counter(mixed[block * BLOCK + i][0] for i in range(BLOCK))
        assert drawn == {0: 700, 1: 200, 2: 100}
    # Shuffled, not 700 of one and then 200 of the next: each hundred holds all three.
    for start in range(0, BLOCK, 100):
        assert {mixed[start + i][0] for i in range(100)} == {0, 1, 2}


def test_only_ratios_of_weights_matter() -> None:
    one, other = mixture([5, 5], [0.7, 0.3]), mixture([5, 5], [7, 3])
    assert [one[i] for i in range(50)] == [other[i] for i in range(50)]
    # A third each: 333.3 of 1,000; the odd one goes to the first.
    assert mixture([1, 1, 1], [1, 1, 1]).counts == (334, 333, 333)
    assert mixture([1, 0], [1, 0]).counts == (1000, 0)
    assert mixture([1, 1], [1e308, 1e308]).counts == (500, 500)


@settings(max_examples=15, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    data=st.data(),
    seed=st.integers(0, 2**31),
)
def test_each_item_once_before_any_is_repeated(lengths: list[int], data: st.DataObject, seed: int) -> None:
    weights = [data.draw(st.floats(0.05, 10)) for _ in lengths]
    mixed = mixture(lengths, weights, seed)
    assert sum(mixed.counts) == BLOCK
    total = sum(weights)
    for count, weight in zip(mixed.counts, weights, strict=True):
        assert abs(count - weight / total * BLOCK) < 1
    draws = [mixed[i] for i in range(2 * BLOCK)]
    for source, length in enumerate(lengths):
        items = [item for drawn, item in draws if drawn == source]
        for start in range(0, len(items) - length + 1, length):
            assert sorted(items[start : start + length]) == list(range(length))


def test_a_draw_depends_only_on_its_index() -> None:
    forwards = [mixture([9, 4], [3, 1])[i] for i in range(2500)]
    backwards = mixture([9, 4], [3, 1])
    assert [backwards[i] for i in reversed(range(2500))] == forwards[::-1]
    assert mixture([9, 4], [3, 1])[2345] == forwards[2345]
    other = mixture([9, 4], [3, 1], seed=1)
    assert [other[i] for i in range(100)] != forwards[:100]
    moved = pickle.loads(pickle.dumps(mixture([9, 4], [3, 1])))
    assert [moved[i] for i in range(100)] == forwards[:100], "also in another process"
    with pytest.raises(IndexError, match="negative"):
        backwards[-1]


@pytest.mark.parametrize(
    ("lengths", "weights", "reason"),
    [
        ([], [], "mixture: no sources"),
        ([3, 0], [1, 1], "set 1: the source is empty; add rigs"),
        ([3, 3], [1, -1], "non-negative"),
        ([3, 3], [1, float("nan")], "finite"),
        ([3, 3], [1, float("inf")], "finite"),
        ([3, 3], [0, 0], "all weights are 0"),
        ([3, 3], [1, 0.0005], "share of set 1 is below 1/1000"),
    ],
)
def test_invalid_mixtures_are_refused(lengths: list[int], weights: list[float], reason: str) -> None:
    with pytest.raises(MeshError, match=reason):
        mixture(lengths, weights)


def test_prepared_folders(tmp_path: Path) -> None:
    folders = []
    for name, seeds in (("a", range(3)), ("b", range(3, 4))):
        (tmp_path / name).mkdir()
        for seed in seeds:
            creature = make_creature(seed)
            write_rig_npz(tmp_path / name / f"{seed}.npz", RiggedMesh(creature.mesh, creature.rig))
        prepare([tmp_path / name], tmp_path / f"{name}_out", PrepareSettings(eval_share=0))
        folders.append(tmp_path / f"{name}_out")
    mixed = prepared_mixture(folders, [70, 30], seed=5)
    assert mixed.counts == (700, 300)
    assert prepared_mixture(folders).counts == (750, 250), "by the number of rigs: 3 and 1"
    index = next(i for i in range(100) if mixed.place(i)[0] == 1)
    np.testing.assert_allclose(mixed[index].rig.joints, make_creature(3).rig.joints, atol=1e-5)
    assert {mixed[i].name for i in range(20)} == {"0", "1", "2", "3"}
    with pytest.raises(MeshError, match="1 weights for 2 folders"):
        prepared_mixture(folders, [1])
    with pytest.raises(MeshError, match="no rigs in the 'eval' split"):
        prepared_mixture(folders, split="eval")
