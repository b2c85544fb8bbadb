"""Starting the reward service: its decoder's device and dtype."""

from types import SimpleNamespace

import pytest

from data.typed_recipe import RecipeError
from rl.reward_service import reward_service


@pytest.mark.parametrize("device", ["quantum", "cuda:99"])
def test_devices_that_are_not_there(make_recipe, policy, device):
    recipe = make_recipe({"workers.decoder_device": device})
    with pytest.raises(RecipeError, match=r"workers\.decoder_device"), reward_service(recipe, policy):
        pass


def test_tf32_without_cuda_is_refused(make_recipe, policy):
    recipe = make_recipe({"workers.decoder_dtype": "tf32"})
    with (
        pytest.raises(RecipeError, match=r"'workers\.decoder_dtype' is tf32 but .* use float32 or bfloat16"),
        reward_service(recipe, policy),
    ):
        pass


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dtype_reaches_the_in_process_decoder(make_recipe, policy, monkeypatch, dtype):
    given = {}

    def service(skin_vae, settings, device, **options):
        given.update(options, device=device)
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr("rl.reward_service.InlineRewardService", service)
    recipe = make_recipe({"workers.decoder_dtype": dtype, "workers.backend": "inline"})
    with reward_service(recipe, policy):
        assert given == {"dtype": dtype, "device": "cpu"}


def test_the_dtype_reaches_rays_decoder(make_recipe, policy, monkeypatch):
    given = {}

    def service(skin_vae, settings, **options):
        given.update(options)
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr("rewards.ray_service.RayRewardService", service)
    recipe = make_recipe({"workers.decoder_dtype": "bfloat16", "workers.backend": "ray"})
    with reward_service(recipe, policy):
        assert given["dtype"] == "bfloat16"
