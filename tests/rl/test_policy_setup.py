"""Policies with damaged files are refused with their path and the reason."""

import json
import shutil

import pytest

from data.typed_recipe import RecipeError
from rl.policy_setup import load_policy


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
            "11 weights required by config.json are missing",
        ),
        (damage("config.json", configured(hidden_size=48)), "have the wrong shape"),
        (damage("skin_vae/model.safetensors", lambda _: None), "skin_vae"),
        (damage("skin_vae/model.safetensors", lambda content: content[:100]), "cannot be loaded"),
        (damage("skin_vae/config.json", configured(width_encoder=32)), "size mismatch"),
        (damage("skin_vae/config.json", configured(colour="red")), "colour"),
        (damage("skin_vae/config.json", configured(fsq_levels=[8, 4])), "skin_vae has 32 codes; load the"),
        (damage("skin_vae/config.json", configured(tokens_per_skin=1)), "skin_vae has 1; set tokens_per"),
    ],
)
def test_damaged_policies_are_refused(make_recipe, policy_path, tmp_path, apply, words):
    folder = tmp_path / "damaged"
    shutil.copytree(policy_path, folder)
    apply(folder)
    with pytest.raises(RecipeError, match=r"'policy\.path'") as refusal:
        load_policy(make_recipe({"policy.path": str(folder)}))
    assert str(folder) in str(refusal.value)
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)
