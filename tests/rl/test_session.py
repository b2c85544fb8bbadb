"""What commands share: which meshes train and which are held out, and the checks before any work."""

import json
import shutil

import numpy as np
import pytest
import trimesh

from data.mesh import MeshError
from data.typed_recipe import RecipeError
from rl.session import load_meshes, load_policy, reward_service, without_refused


def write_meshes(folder, count: int) -> str:
    folder.mkdir()
    for size in range(count):
        trimesh.creation.box((1, 1, 1 + size)).export(folder / f"box{size}.obj")
    return str(folder / "*.obj")


def test_creatures_for_training_and_evaluation_are_never_the_same(make_recipe):
    meshes = load_meshes(make_recipe({"data.train_count": 5, "data.eval_count": 3}))
    assert (meshes.train, meshes.held_out) == ([0, 1, 2, 3, 4], [5, 6, 7])
    names = [sample.name for sample in meshes.samples]
    assert len(set(names)) == 8
    assert all(len(sample.points) == 64 for sample in meshes.samples)
    other = load_meshes(make_recipe({"data.seed": 1, "data.train_count": 5, "data.eval_count": 3}))
    assert not set(names) & {sample.name for sample in other.samples}
    again = load_meshes(make_recipe({"data.train_count": 5, "data.eval_count": 3}))
    for first, second in zip(meshes.samples, again.samples, strict=True):
        assert np.array_equal(first.points, second.points)


@pytest.mark.parametrize(
    ("files", "eval_count", "train", "held_out"),
    [(7, 2, 5, 2), (7, 100, 4, 3), (2, 16, 1, 1), (3, 16, 2, 1)],
)
def test_files_are_split_with_at_most_half_held_out(
    make_recipe, tmp_path, files, eval_count, train, held_out
):
    pattern = write_meshes(tmp_path / "meshes", files)
    meshes = load_meshes(make_recipe({"data.meshes": pattern, "data.eval_count": eval_count}))
    assert (len(meshes.train), len(meshes.held_out)) == (train, held_out)
    assert sorted(meshes.train + meshes.held_out) == list(range(files))


def test_a_single_file_serves_both(make_recipe, tmp_path):
    meshes = load_meshes(make_recipe({"data.meshes": write_meshes(tmp_path / "meshes", 1)}))
    assert (meshes.train, meshes.held_out) == ([0], [0])


def test_files_of_their_own_for_evaluation(make_recipe, tmp_path, capsys):
    train, held_out = write_meshes(tmp_path / "a", 3), write_meshes(tmp_path / "b", 2)
    (tmp_path / "b" / "empty.obj").write_text("")
    meshes = load_meshes(make_recipe({"data.meshes": train, "data.eval_meshes": held_out}))
    assert (len(meshes.train), len(meshes.held_out)) == (3, 2)
    assert "empty.obj" in capsys.readouterr().err


def test_meshes_that_cannot_be_scored_are_left_out(make_recipe, capsys):
    meshes = load_meshes(make_recipe({"data.train_count": 2, "data.eval_count": 2}))
    left = without_refused(meshes, [None, "second: is flat", None, "fourth: is flat"])
    assert (left.train, left.held_out) == ([0], [2])
    assert capsys.readouterr().err.splitlines() == ["skipped: second: is flat", "skipped: fourth: is flat"]
    for reasons in (["a", "b", None, None], [None, None, "c", "d"]):
        with pytest.raises(MeshError, match=r"no mesh is left .*'data.meshes'"):
            without_refused(meshes, reasons)


def damage(name: str, change):
    """Change one file of a policy: `change` takes and gives back its bytes, or None to remove it."""

    def apply(folder) -> None:
        content = change((folder / name).read_bytes())
        (folder / name).unlink()
        if content is not None:
            (folder / name).write_bytes(content)

    return apply


def configured(**values: object):
    return lambda content: json.dumps({**json.loads(content), **values}).encode()


@pytest.mark.parametrize(
    ("apply", "words"),
    [
        (damage("config.json", lambda _: None), "no config.json"),
        (damage("config.json", lambda content: content[:50]), "config.json"),
        (damage("model.safetensors", lambda _: None), "no model.safetensors"),
        (damage("model.safetensors", lambda content: content[:100]), "cannot be loaded"),
        (damage("model.safetensors", lambda content: content[:-100]), "cannot be loaded"),
        (
            damage("config.json", configured(num_hidden_layers=3)),
            "11 of the weights that config.json asks for",
        ),
        (damage("config.json", configured(hidden_size=48)), "of another size"),
        (damage("skin_vae/model.safetensors", lambda _: None), "skin_vae"),
        (damage("skin_vae/model.safetensors", lambda content: content[:100]), "cannot be loaded"),
        (damage("skin_vae/config.json", configured(width_encoder=32)), "size mismatch"),
        (damage("skin_vae/config.json", configured(colour="red")), "colour"),
        (damage("skin_vae/config.json", configured(fsq_levels=[8, 4])), "32 codes"),
    ],
)
def test_damaged_policies_are_named(make_recipe, policy_path, tmp_path, apply, words):
    folder = tmp_path / "damaged"
    shutil.copytree(policy_path, folder)
    apply(folder)
    with pytest.raises(RecipeError, match=r"'policy\.path'") as refusal:
        load_policy(make_recipe({"policy.path": str(folder)}))
    assert str(folder) in str(refusal.value) or "codes" in str(refusal.value)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("device", ["quantum", "cuda:99"])
def test_devices_that_are_not_there(make_recipe, policy, device):
    recipe = make_recipe({"workers.decoder_device": device})
    with pytest.raises(RecipeError, match=r"workers\.decoder_device"), reward_service(recipe, policy):
        pass
