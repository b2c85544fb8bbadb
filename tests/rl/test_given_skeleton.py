"""Given skeletons: order of joints, tokens and weights; what fits; and the choice of `rig.skeleton`."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import (
    MeshError,
    Rig,
    depth_first,
    load_mesh,
    make_creature,
    make_sample,
    read_skinned_glb,
    write_skinned_glb,
)
from data.typed_recipe import RecipeError
from policy.tokens.skeleton_tokenizer import detokenize, discretize, tokenize_skeleton
from policy.tokens.vocabulary import Vocabulary
from rl.given_skeleton import (
    SkeletonRoom,
    chosen_skeleton,
    give,
    tokens_of,
    true_skeleton,
    true_skeletons,
)
from tests.rl import tiny

WORDS = tiny.VOCABULARY
ROOM = SkeletonRoom(WORDS, 10_000, 10_000)


def as_array(*rows):
    return np.array(rows, dtype=np.float32)


def test_joints_keep_their_order_and_tokens_have_their_own():
    # Children of the root by (y, z, x): c (y -0.5), then b (y 0.5); d hangs on b.
    joints = as_array([0, 0, 0], [0.2, 0.5, 0], [0, -0.5, 0], [0.4, 0.9, 0])
    parents = np.array([-1, 0, 0, 1])
    skeleton = give(joints, parents, ["a", "b", "c", "d"], WORDS)
    assert skeleton.order.tolist() == [0, 2, 1, 3]
    assert np.array_equal(skeleton.joints, joints)
    assert skeleton.names == ("a", "b", "c", "d")
    # Sixteen bins: 0 is 8, 0.2 is 9.6 → 10, ±0.5 are 12 and 4, 0.4 is 11.2 → 11, 0.9 is 15.2 → 15.
    branch, end = WORDS.branch, WORDS.skeleton_eos
    assert skeleton.tokens == (8, 8, 8, 8, 4, 8, branch, 8, 8, 8, 10, 12, 8, 11, 15, 8, end)

    rollout = skeleton.rollout_rig(np.arange(8).reshape(4, 2))
    assert np.array_equal(rollout.joints, joints)  # exact, not bins
    assert rollout.parents.tolist() == [-1, 0, 0, 1]
    # The codes of token joint 1 are those of joint c.
    assert rollout.codes.tolist() == [[0, 1], [4, 5], [2, 3], [6, 7]]


def test_siblings_in_one_bin_are_ordered_by_exact_position():
    # y 0.05 and 0.02 are both bin 8: the quantised skeletons tie, the exact ones do not.
    joints = as_array([0, 0, 0], [0.3, 0.05, 0], [-0.3, 0.02, 0])
    assert len({int(k) for k in discretize(joints[1:, 1], WORDS.bins)}) == 1
    skeleton = give(joints, np.array([-1, 0, 0]), "abc", WORDS)
    assert skeleton.order.tolist() == [0, 2, 1]
    assert skeleton.tokens[3:6] == tuple(discretize(joints[2], WORDS.bins))
    # Coinciding joints keep the given order.
    same = give(as_array([0, 0, 0], [0, 0.5, 0], [0, 0.5, 0]), np.array([-1, 0, 0]), "abc", WORDS)
    assert same.order.tolist() == [0, 1, 2]


@settings(deadline=None, max_examples=60)
@given(
    parents=st.integers(0, 12).flatmap(lambda n: st.tuples(*[st.integers(0, i) for i in range(n)])),
    seed=st.integers(0, 2**32 - 1),
    grid=st.sampled_from([1, 2, 1000]),
)
def test_any_skeleton_is_tokenized_and_restored(parents, seed, grid):
    """Coordinates on a coarse grid coincide and tie; some lie outside the box."""
    rng = np.random.default_rng(seed)
    count = len(parents) + 1
    joints = (rng.integers(-grid, grid + 1, (count, 3)) / grid * 1.5).astype(np.float32)
    up = np.array([-1, *parents])
    # Each joint has a weight of its own at a vertex, by which the canonical rig tells which one it is.
    marks = np.arange(count, dtype=np.float32)[None]
    skeleton = give(joints, up, [f"j{i}" for i in range(count)], WORDS)
    # The tokens are those of the canonical rig, as in the policy's training data.
    canonical = depth_first(Rig(joints, up, marks, skeleton.names))
    whole = tokenize_skeleton(canonical.joints, canonical.parents, None, WORDS)
    assert list(skeleton.tokens) == whole[2:]
    assert len(detokenize(whole, WORDS).joints) == count
    codes = np.repeat(canonical.weights.T.astype(np.int64), 2, axis=1)
    rollout = skeleton.rollout_rig(codes)
    assert np.array_equal(rollout.joints, joints)
    assert np.array_equal(rollout.parents, up)
    assert rollout.codes[:, 0].tolist() == list(range(count))
    assert skeleton.outside == int((np.abs(joints).max(axis=1) > 1).sum())


def test_the_skeleton_of_a_sample_is_its_rigs():
    creature = make_creature(2)
    sample = make_sample(creature.mesh, creature.rig, 8, 0)
    skeleton = true_skeleton(sample, WORDS)
    assert np.array_equal(skeleton.joints, sample.rig.joints)
    assert skeleton.order.tolist() == list(range(len(skeleton.joints)))
    bare = replace(sample, rig=None, name="stone")
    assert true_skeleton(bare, WORDS) is None
    with pytest.raises(ValueError, match="mesh stone has no rig"):
        true_skeletons([sample, bare], [0, 1], WORDS)
    found = true_skeletons([sample, bare], [0], WORDS)
    assert tokens_of(found, [1, 0]) == [(), skeleton.tokens]
    assert tokens_of(None, [1, 0]) == [(), ()]


def test_what_does_not_fit_is_refused():
    # Two joints in a chain: 2 + 7 tokens of prompt, 2 · 2 + 1 of completion.
    skeleton = give(as_array([0, 0, 0], [0, 1, 0]), np.array([-1, 0]), "ab", WORDS)
    assert SkeletonRoom(WORDS, 14, 5).refusal(skeleton) is None
    assert "2 joints need 5 tokens; raise train.max_completion_length, now 4" in SkeletonRoom(
        WORDS, 14, 4
    ).refusal(skeleton)
    assert "2 joints take 14 tokens, but the model has 13 positions" in SkeletonRoom(WORDS, 13, 5).refusal(
        skeleton
    )


def test_the_room_is_what_the_policy_and_the_recipe_leave(policy, make_recipe):
    room = SkeletonRoom.of(policy, make_recipe())
    assert room == SkeletonRoom(WORDS, tiny.POSITIONS - tiny.MESH_TOKENS, 160)


# ------------------------------------------------------------------ rig.skeleton


@pytest.fixture
def creature():
    """In metres, far from the origin."""
    made = make_creature(3)
    return replace(made.mesh, centre=np.array([100.0, -20.0, 3.0]), scale=1 / 37), made.rig


def write_json(path, joints, parents, **further):
    path.write_text(json.dumps({"joints": joints.tolist(), "parents": parents.tolist(), **further}))
    return str(path)


def test_own_is_the_rig_of_the_mesh_file(creature, make_recipe, tmp_path):
    mesh, rig = creature
    file = tmp_path / "m.glb"
    write_skinned_glb(file, mesh, rig)
    read = load_mesh(file)
    chosen = chosen_skeleton(make_recipe({"rig.skeleton": "own", "rig.mesh": str(file)}), read, ROOM)
    np.testing.assert_allclose(chosen.joints, rig.joints, atol=1e-5)
    assert np.array_equal(chosen.joints, read_skinned_glb(file)[1].joints)
    assert chosen.names == rig.names
    assert chosen_skeleton(make_recipe(), mesh, ROOM) is None
    # The content decides, not the name.
    glb = file.rename(tmp_path / "m.obj")
    again = chosen_skeleton(make_recipe({"rig.skeleton": "own", "rig.mesh": str(glb)}), read, ROOM)
    assert np.array_equal(again.joints, chosen.joints)
    obj = tmp_path / "m.glb"
    obj.write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    with pytest.raises(
        RecipeError, match=r"is own, but .*m\.glb holds no skeleton \(OBJ files cannot\); pass"
    ):
        chosen_skeleton(make_recipe({"rig.skeleton": "own", "rig.mesh": str(obj)}), mesh, ROOM)


def test_a_json_skeleton_is_turned_like_its_mesh(creature, make_recipe, tmp_path):
    """Of a z-up file: (x, y, z) of a y-up model is stored as (x, -z, y)."""
    mesh, rig = creature
    x, y, z = (rig.joints.astype(np.float64) / mesh.scale + mesh.centre).T
    file = write_json(tmp_path / "s.json", np.stack([x, -z, y], axis=1), rig.parents)
    chosen = chosen_skeleton(make_recipe({"rig.skeleton": file, "rig.up": "z"}), mesh, ROOM)
    np.testing.assert_allclose(chosen.joints, rig.joints, atol=1e-6)


def test_a_file_is_read_in_the_meshs_own_frame(creature, make_recipe, tmp_path):
    mesh, rig = creature
    world = rig.joints.astype(np.float64) / mesh.scale + mesh.centre
    file = write_json(tmp_path / "s.json", world, rig.parents)
    chosen = chosen_skeleton(make_recipe({"rig.skeleton": file}), mesh, ROOM)
    np.testing.assert_allclose(chosen.joints, rig.joints, atol=1e-6)


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (100.0, r"a joint is more than 5 box sides away"),
        (3.0, r"joints lie outside the mesh's box; export both in one unit and frame"),
        (0.001, r"it spans only .* % of the mesh's box"),
    ],
)
def test_a_file_in_another_unit_is_refused(creature, make_recipe, tmp_path, factor, message):
    mesh, rig = creature
    offset = np.array([0, 0, 0]) if factor < 1 else np.array([0.9, 0.9, 0.9])
    world = (rig.joints + offset).astype(np.float64) * factor / mesh.scale + mesh.centre
    file = write_json(tmp_path / "s.json", world, rig.parents)
    with pytest.raises(RecipeError, match=message) as caught:
        chosen_skeleton(make_recipe({"rig.skeleton": file}), mesh, ROOM)
    assert str(caught.value).startswith(f"'rig.skeleton': {file} does not fit")


def test_other_mistakes_name_the_file(creature, make_recipe, tmp_path):
    mesh, rig = creature
    with pytest.raises(MeshError, match=r"gone\.json: cannot be read"):
        chosen_skeleton(make_recipe({"rig.skeleton": str(tmp_path / "gone.json")}), mesh, ROOM)
    world = rig.joints.astype(np.float64) / mesh.scale + mesh.centre
    file = write_json(tmp_path / "s.json", world, rig.parents)
    with pytest.raises(RecipeError, match=r"s\.json is too long: its \d+ joints need"):
        chosen_skeleton(make_recipe({"rig.skeleton": file}), mesh, SkeletonRoom(WORDS, 1000, 9))


def test_more_bins_change_tokens_only():
    joints = as_array([0, 0, 0], [0, 0.3, 0])
    coarse, fine = (give(joints, np.array([-1, 0]), "ab", Vocabulary(bins=n)) for n in (16, 256))
    assert coarse.tokens != fine.tokens
    assert np.array_equal(coarse.joints, fine.joints)
