"""The study of decoder dtype and scoring points: its arithmetic and its finer meshes."""

import numpy as np
import pytest

from data import creature_samples
from data.welding import weld_surface
from rl.decoder_study import REFERENCE, change, comparisons, subdivided, table


def test_changes_of_a_group_by_hand():
    # Totals: 5 coverage + containment + sparsity + smoothness.
    old = [np.array([[0.2, 0.5, 1.0, 0.3], [0.2, 0.5, 1.0, 0.2], [0.4, 0.5, 1.0, 0.1]])]  # 2.8, 2.7, 3.6
    new = [np.array([[0.2, 0.5, 0.8, 0.3], [0.2, 0.5, 1.0, 0.2], [0.4, 0.5, 1.0, 0.4]])]  # 2.6, 2.7, 3.9
    found = change(new, old)
    np.testing.assert_allclose(found.mean_absolute, [0, 0, 0.2 / 3, 0.1, 0.5 / 3])
    np.testing.assert_allclose(found.mean, [0, 0, -0.2 / 3, 0.1, 0.1 / 3], atol=1e-15)
    assert found.flipped == pytest.approx(1 / 3)  # of three pairs, the first two rollouts
    assert found.correlation == pytest.approx(np.corrcoef([2.6, 2.7, 3.9], [2.8, 2.7, 3.6])[0, 1])
    assert change(old, old).flipped == 0
    assert change(old, old).correlation == pytest.approx(1)
    printed = table([("bfloat16", found)], np.array([0.1, 0, 0, 0, 0.5]))
    assert "| bfloat16 | 0 | 0 | 6.7e-02 (-6.7e-02) |" in printed


def test_group_means_do_not_count_as_correlation():
    rng = np.random.default_rng(0)
    groups = [rng.uniform(size=(50, 4)) * 1e-3 + mean for mean in (0.1, 0.9)]
    others = [rng.uniform(size=(50, 4)) * 1e-3 + mean for mean in (0.1, 0.9)]
    assert abs(change(groups, others).correlation) < 0.4


def test_subdividing_keeps_the_surface():
    sample = creature_samples(1, 0, points=64)[0]
    count = len(weld_surface(sample.mesh.vertices, sample.mesh.faces).points)
    finer = subdivided(sample, count)
    points, faces = finer.mesh.vertices, finer.mesh.faces
    assert count < len(points) <= 5 * count

    def area(vertices, triangles):
        a, b, c = vertices[triangles].swapaxes(0, 1).astype(np.float64)
        return np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2

    assert area(points, faces) == pytest.approx(area(sample.mesh.vertices, sample.mesh.faces), rel=1e-5)
    assert len(weld_surface(points, faces).points) == len(points)
    assert len(subdivided(sample, count - 1).mesh.vertices) == count


def test_rows_are_below_the_reference():
    labels = [label for label, _, _ in comparisons(16384)]
    assert "bfloat16, 4,096 points" in labels
    assert labels[1] == "bfloat16"
    assert [label for label, new, _ in comparisons(1024) if new.points is not None] == []
    assert REFERENCE.points is None
