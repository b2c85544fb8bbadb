"""Starting the reward service: a decoder device that does not exist is refused."""

import pytest

from data.typed_recipe import RecipeError
from rl.reward_service import reward_service


@pytest.mark.parametrize("device", ["quantum", "cuda:99"])
def test_devices_that_are_not_there(make_recipe, policy, device):
    recipe = make_recipe({"workers.decoder_device": device})
    with pytest.raises(RecipeError, match=r"workers\.decoder_device"), reward_service(recipe, policy):
        pass
