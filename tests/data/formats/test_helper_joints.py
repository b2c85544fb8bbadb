"""Pruning of joints that are not ground truth: each rule by hand on small rigs, and what always holds."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.creatures import make_creature
from data.formats.helper_joints import FAR_OUTSIDE, SAME_PLACE, Pruned, without_helpers
from data.mesh import Mesh
from data.rig import Rig

# A box from -1 to 1 on each axis: eight corners.
CORNERS = np.array([[x, y, z] for x in (-1.0, 1) for y in (-1.0, 1) for z in (-1.0, 1)], dtype=np.float32)
BOX = Mesh(CORNERS, np.array([[0, 1, 2], [5, 6, 7], [3, 4, 5]]), "box", np.zeros(3), 1.0)


def rig(*joints: tuple[str, int, tuple[float, float, float], float]) -> Rig:
    """Joints (name, parent, place, weight): vertex j belongs to joint j, the rest to the heaviest."""
    weights = np.zeros((8, len(joints)), dtype=np.float32)
    for joint, (_, _, _, weight) in enumerate(joints):
        weights[joint, joint] = weight
    heaviest = int(np.argmax([weight for *_, weight in joints]))
    weights[:, heaviest] += 1 - weights.sum(axis=1)
    names = tuple(name for name, *_ in joints)
    parents = np.array([parent for _, parent, *_ in joints])
    return Rig(np.array([place for _, _, place, _ in joints]), parents, weights, names)


def shown(pruned: Rig) -> list[tuple[str, str]]:
    """(name, parent's name) of each joint."""
    names = pruned.names
    return [(name, names[up] if up >= 0 else "") for name, up in zip(names, pruned.parents, strict=True)]


Joints = Sequence[tuple[str, int, tuple[float, float, float], float]]


@pytest.mark.parametrize(
    ("joints", "left", "counts"),
    [
        pytest.param(
            [("hips", -1, (0, 0, 0), 1), ("head", 0, (0, 0.5, 0), 1), ("top", 1, (0, 1, 0), 0)],
            [("hips", ""), ("head", "hips")],
            Pruned(ends=1),
            id="an end without weight",
        ),
        pytest.param(
            [
                ("hips", -1, (0, 0, 0), 1),
                ("finger", 0, (0.5, 0, 0), 0),
                ("tip", 1, (0.6, 0, 0), 0),
            ],
            [("hips", "")],
            Pruned(ends=2),
            id="a whole branch without weight",
        ),
        pytest.param(
            [
                ("hips", -1, (0, 0, 0), 1),
                ("FootIK.L", 0, (0, -1, 0), 0),
                ("heel", 1, (0, -1, 0.2), 0),
                ("PoleTarget.L", 0, (0, 0, 3), 0),
            ],
            [("hips", "")],
            Pruned(controls=3),
            id="IK target with what hangs on it, and a pole far away",
        ),
        pytest.param(
            [("hips", -1, (0, 0, 0), 1), ("FootIK.L", 0, (0, -1, 0), 0.5), ("toe", 1, (0, -1, 0.5), 0.2)],
            [("hips", ""), ("FootIK.L", "hips"), ("toe", "FootIK.L")],
            Pruned(),
            id="a name does not remove a joint with weight",
        ),
        pytest.param(
            [
                ("root", -1, (0, -1, 0), 0),
                ("hips", 0, (0, 0, 0), 1),
                ("neck", 1, (0, 0.5, 0), 0),
                ("head", 2, (0, 0.8, 0), 1),
            ],
            [("hips", ""), ("neck", "hips"), ("head", "neck")],
            Pruned(controls=1),
            id="a root that moves the whole rig, but not the neck",
        ),
        pytest.param(
            [("root", -1, (0, -1, 0), 0), ("left", 0, (-1, 0, 0), 1), ("right", 0, (1, 0, 0), 1)],
            [("root", ""), ("left", "root"), ("right", "root")],
            Pruned(),
            id="a root with two branches",
        ),
        pytest.param(
            [
                ("root", -1, (0, -1, 0), 0),
                ("pole", 0, (0, 0, 1), 0),
                ("master", 0, (0, 0, 0.1), 0),
                ("hips", 2, (0, 0, 0), 1),
            ],
            [("hips", "")],
            Pruned(controls=3),
            id="one rule makes another apply: root, pole, master",
        ),
        pytest.param(
            [
                ("hips", -1, (0, 0, 0), 1),
                ("ChestCtrl", 0, (0, 0.3, 0.3), 0),
                ("chest", 1, (0, 0.5, 0), 1),
                ("spike", 0, (0, 0, 0.5), 0),
                ("horn", 3, (0, 0, 0.8), 1),
            ],
            [("hips", ""), ("chest", "hips"), ("spike", "hips"), ("horn", "spike")],
            Pruned(controls=1),
            id="a control by name inside a chain, but no spike",
        ),
        pytest.param(
            [
                ("hips", -1, (0, 0, 0), 1),
                ("pelvis", 0, (0, SAME_PLACE / 2, 0), 0.75),
                ("leg", 1, (0, -0.5, 0), 1),
            ],
            [("hips", ""), ("leg", "hips")],
            Pruned(repeated=1),
            id="a joint on its parent",
        ),
        pytest.param(
            [
                ("hips", -1, (0, 0, 0), 1),
                ("FootControl", 0, (0, -1, 0), 0.4),
                ("toe", 1, (0, -1, 0.2), 0.3),
                ("leg", 0, (0, -0.5, 0), 0.2),
                ("foot", 3, (0, -1, 0), 0.1),
            ],
            [("hips", ""), ("leg", "hips"), ("foot", "leg"), ("toe", "foot")],
            Pruned(repeated=1),
            id="of two joints elsewhere the one in the limb is kept",
        ),
        pytest.param(
            [
                ("hips", -1, (0, 0, 0), 1),
                ("a", 0, (1, 0, 0), 0.3),
                ("b", 0, (1, 0, 0), 0.4),
                ("a2", 1, (1, 0.5, 0), 0.2),
                ("b2", 2, (1, -0.5, 0), 0.2),
            ],
            [("hips", ""), ("b", "hips"), ("a2", "b"), ("b2", "b")],
            Pruned(repeated=1),
            id="of two siblings the heavier branch",
        ),
        pytest.param(
            [
                ("hips", -1, (0, 0, 0), 1),
                ("far", 0, (1 + FAR_OUTSIDE + 0.01, 0, 0), 0.6),
                ("hand", 1, (1, 0, 0), 0.5),
                ("near", 0, (-1 - FAR_OUTSIDE + 0.01, 0, 0), 0.5),
            ],
            [("hips", ""), ("hand", "hips"), ("near", "hips")],
            Pruned(far=1),
            id="a joint far outside, even with weight",
        ),
        pytest.param(
            [
                ("root", -1, (0, -5, 0), 0),
                ("left", 0, (-1, 0, 0), 0.4),
                ("right", 0, (1, 0, 0), 1),
                ("hand", 1, (-1, 1, 0), 0.1),
            ],
            [("right", ""), ("left", "right"), ("hand", "left")],
            Pruned(far=1),
            id="a far root: the heaviest branch takes over",
        ),
        pytest.param(
            [("root", -1, (0, -5, 0), 1), ("child", 0, (0, -6, 0), 0.5)],
            [("root", ""), ("child", "root")],
            Pruned(),
            id="all joints far outside",
        ),
        pytest.param(
            [("hips", -1, (0, 0, 0), 1), ("trace", 0, (0, 1, 0), 0.009)],
            [("hips", "")],
            Pruned(ends=1),
            id="a trace of weight",
        ),
        pytest.param([("only", -1, (0, 0, 0), 1)], [("only", "")], Pruned(), id="a single joint"),
    ],
)
def test_rules(joints: Joints, left: list[tuple[str, str]], counts: Pruned) -> None:
    before = rig(*joints)
    after, pruned = without_helpers(BOX, before)
    assert (shown(after), pruned) == (left, counts)
    place = {name: joint for joint, name in enumerate(before.names)}
    for joint, name in enumerate(after.names):
        np.testing.assert_array_equal(after.joints[joint], before.joints[place[name]])


def test_weights_go_to_the_joint_that_replaces_a_removed_one() -> None:
    before = rig(
        ("hips", -1, (0, 0, 0), 1),
        ("pelvis", 0, (0, 0, 0), 0.75),
        ("leg", 1, (0, -0.5, 0), 0.5),
        ("trace", 2, (0, -0.9, 0), 0.005),
    )
    after, _ = without_helpers(BOX, before)
    assert after.names == ("hips", "leg")
    # Vertex 1: 0.75 pelvis + 0.25 hips; vertex 2: 0.5 leg + 0.5 hips; vertex 3: 0.005 trace + 0.995 hips.
    np.testing.assert_allclose(after.weights[:4], [[1, 0], [1, 0], [0.5, 0.5], [0.995, 0.005]], atol=1e-6)


def test_single_ends_can_be_kept() -> None:
    """A single end stays; a control, an end in its parent's place and a chain of two do not."""
    before = rig(
        ("hips", -1, (0, 0, 0), 1),
        ("head", 0, (0, 0.5, 0), 0.5),
        ("head_end", 1, (0, 1, 0), 0),
        ("HeadIK", 1, (0, 0.6, 0), 0),
        ("toe_end", 0, (0, SAME_PLACE / 2, 0), 0),
        ("finger", 0, (0.5, 0, 0), 0),
        ("tip", 5, (0.6, 0, 0), 0),
        ("far_end", 1, (0, 2, 0), 0),
    )
    after, pruned = without_helpers(BOX, before, keep_ends=True)
    assert after.names == ("hips", "head", "head_end")
    assert pruned == Pruned(ends=2, controls=1, repeated=1, far=1)
    again, nothing = without_helpers(BOX, after, keep_ends=True)
    assert again is after
    assert nothing.total == 0


def test_a_rig_whose_weights_are_all_small_is_kept() -> None:
    """Each joint is some vertex's largest, although 1 / 128 is below the threshold."""
    places = np.stack([np.linspace(-1, 1, 128), np.zeros(128), np.zeros(128)], axis=1)
    weights = np.full((128, 128), 1 / 128, dtype=np.float32)
    weights[np.arange(128), np.arange(128)] *= 1.01
    mesh = Mesh(np.tile(CORNERS, (16, 1)), BOX.faces, "box", np.zeros(3), 1.0)
    before = Rig(places, np.arange(-1, 127), weights)
    after, pruned = without_helpers(mesh, before)
    assert after is before
    assert pruned == Pruned()


def test_creatures_have_no_helpers() -> None:
    for seed in range(12):
        creature = make_creature(seed)
        after, pruned = without_helpers(creature.mesh, creature.rig)
        assert after is creature.rig
        assert pruned.total == 0


def test_counts_add_up() -> None:
    assert Pruned(1, 2, 3, 4) + Pruned(ends=1, far=1) == Pruned(2, 2, 3, 5)
    assert Pruned(1, 2, 3, 4).total == 10


@st.composite
def rigs(draw: st.DrawFn) -> Rig:
    """Any tree on a coarse grid that reaches outside the box; joints may coincide or have no weight."""
    count = draw(st.integers(1, 12))
    axis = st.sampled_from([-1.5, -1.0, 0.0, 0.5, 1.0, 1.15])
    joints = draw(st.lists(st.tuples(axis, axis, axis), min_size=count, max_size=count))
    parents = [-1, *(draw(st.integers(0, joint - 1)) for joint in range(1, count))]
    names = [draw(st.sampled_from(["bone", "IK", "PoleTarget", "tip_end"])) for _ in range(count)]
    value = st.sampled_from([0.0, 0.0, 0.0, 0.004, 0.5, 1.0])
    weights = draw(st.lists(st.lists(value, min_size=count, max_size=count), min_size=8, max_size=8))
    return Rig(np.array(joints), np.array(parents), np.array(weights), tuple(names))


@settings(max_examples=300, deadline=None)
@given(rigs(), st.booleans())
def test_what_always_holds(before: Rig, keep_ends: bool) -> None:
    """One root and parents first (`Rig` checks both), weights kept, places kept; twice is once."""
    after, pruned = without_helpers(BOX, before, keep_ends)
    assert len(after.joints) + pruned.total == len(before.joints)
    np.testing.assert_allclose(after.weights.sum(axis=1), before.weights.sum(axis=1), rtol=1e-5)
    kept = {tuple(place) for place in before.joints.tolist()}
    assert {tuple(place) for place in after.joints.tolist()} <= kept
    again, nothing = without_helpers(BOX, after, keep_ends)
    assert again is after
    assert nothing == Pruned()
    if before.weights.any() and not keep_ends:
        leaves = set(range(len(after.joints))) - set(after.parents.tolist())
        assert all(after.weights[:, leaf].any() for leaf in leaves)
