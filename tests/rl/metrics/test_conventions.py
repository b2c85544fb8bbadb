"""How conventions read skeletons: groups, bones and samples by hand, fast and plain."""

import numpy as np
import pytest

from rl.metrics import conventions, reference

THOUSANDTH = 1 / 500  # of the box side, in the mesh frame


def fast(places, parents, convention):
    """Joints, bones and samples in thousandths of the box side, along x; None without a bone."""
    joints = np.array([[place * THOUSANDTH, 0, 0] for place in places])
    read = conventions.read_skeleton(joints, np.array(parents), convention)
    if read is None:
        return None
    return [sorted((array[..., 0] * 1000).tolist()) for array in (read.joints, read.bones, read.samples)]


def plain(places, parents, convention):
    read = {"unirig": reference._read_unirig, "rignet": reference._read_rignet}[convention]
    joints, bones, samples = read([[place * THOUSANDTH / 2, 0, 0] for place in places], parents)
    if not bones:
        return None
    return [
        sorted(joint[0] * 1000 for joint in joints),
        sorted([start[0] * 1000, end[0] * 1000] for start, end in bones),
        sorted(sample[0] * 1000 for sample in samples),
    ]


BOTH = pytest.mark.parametrize("read", [fast, plain])


@BOTH
@pytest.mark.parametrize(
    ("places", "parents", "joints", "bones"),
    [
        # Joints 2 apart are one, for the limit is 2.5 …
        ([0, 2, 100], [-1, 0, 1], [0, 100], [[0, 100]]),
        # … but not joints at the limit: "closer than" is strict.
        ([0, 2.5, 100], [-1, 0, 1], [0, 2.5, 100], [[0, 2.5], [2.5, 100]]),
        # A chain is not one group: 4 is near 2, which joint 0 has taken, and 4 away from 0 itself.
        ([0, 2, 4, 100], [-1, 0, 1, 2], [0, 4, 100], [[0, 4], [4, 100]]),
        # A joint that was taken leads no group: 4 would be near 2, and 5 is near 4, which leads.
        ([0, 2, 4, 5, 100], [-1, 0, 1, 2, 3], [0, 4, 100], [[0, 4], [4, 100]]),
        # The order of the joints decides: the same chain with its middle first is one joint, there.
        ([2, 0.5, 4, 100], [-1, 0, 0, 2], [2, 100], [[2, 100]]),
        # The first leader in reach takes a joint, not the nearest: 3 is nearer to 4 than to 1. So the bones
        # run from 1 to 4, from 4 back to 1, and from 1 to 100.
        ([1, 4, 3, 100], [-1, 0, 1, 2], [1, 4, 100], [[1, 4], [1, 100], [4, 1]]),
        # A group with the root is at the root, whatever the root's index …
        ([2, 0, 100], [1, -1, 0], [0, 100], [[0, 100]]),
        # … but who belongs to it depends on the first joint: -1 is 3 away from 2, and 1 from the root.
        ([2, 0, -1, 100], [1, -1, 1, 0], [-1, 0, 100], [[0, -1], [0, 100]]),
        # The same bone twice counts once (0 to 100, drawn to two joints 1 apart) …
        ([0, 100, 101], [-1, 0, 0], [0, 100], [[0, 100]]),
        # … and in both directions twice.
        ([0, 100, 1], [-1, 0, 1], [0, 100], [[0, 100], [100, 0]]),
        # 300 and 301 are one joint on no bone: dropped.
        ([0, 100, 300, 301], [-1, 0, -1, 2], [0, 100], [[0, 100]]),
        # Joints at one position.
        ([0, 0, 100, 100], [-1, 0, 1, 2], [0, 100], [[0, 100]]),
    ],
)
def test_rignet_merges_joints_in_index_order(read, places, parents, joints, bones):
    found = read(places, parents, "rignet")
    assert found[0] == pytest.approx(joints, abs=1e-9)
    assert np.array(found[1]) == pytest.approx(np.array(bones), abs=1e-9)


@BOTH
@pytest.mark.parametrize(
    ("length", "samples"),
    [
        # round(length / 5) + 1 samples, halves to the even number.
        (2.5, [0]),  # 0.5: 0, so the parent alone
        (2.6, [0, 2.6]),
        (7.4, [0, 7.4]),
        (7.5, [0, 3.75, 7.5]),  # 1.5: 2
        (12.5, [0, 6.25, 12.5]),  # 2.5: 2
        (12.6, [0, 4.2, 8.4, 12.6]),
        (500, [5 * k for k in range(101)]),
    ],
)
def test_rignet_samples_a_bone_by_its_length(read, length, samples):
    assert read([0, length], [-1, 0], "rignet")[2] == pytest.approx(samples, abs=1e-9)
    # From the other end: the parent is there.
    turned = read([length, 0], [-1, 0], "rignet")[2]
    assert turned == pytest.approx(samples if len(samples) > 1 else [length], abs=1e-9)


@BOTH
def test_unirig_takes_joints_and_bones_as_given(read):
    joints, bones, samples = read([0, 0, 100], [-1, 0, 1], "unirig")
    assert joints == [0, 0, 100]
    assert bones == [[0, 0], [0, 100]]
    # 100 at one place, and 1 … 100: the child's end is in, the parent's is not.
    assert samples == pytest.approx([0] * 100 + list(range(1, 101)), abs=1e-9)


@BOTH
@pytest.mark.parametrize(
    ("places", "parents", "convention"),
    [
        ([0], [-1], "unirig"),
        ([0], [-1], "rignet"),
        ([0, 100], [-1, -1], "unirig"),
        ([0, 100], [-1, -1], "rignet"),
        ([0, 1, 2], [-1, 0, 1], "rignet"),  # one joint
    ],
)
def test_skeletons_without_a_bone(read, places, parents, convention):
    assert read(places, parents, convention) is None
