"""Tokens that share their features' vectors: a table by hand, sharing, and a plain model afterwards."""

import pytest
import torch

from policy.pretraining.token_features import coordinate_features, merge_features, share_features
from policy.tokenrig.configuration import TokenRigConfig
from policy.tokenrig.mesh_encoder import MeshEncoderConfig
from policy.tokenrig.modeling import TokenRigForCausalLM
from policy.tokens.vocabulary import Vocabulary

WORDS = Vocabulary(codebook=6, tokens_per_skin=2)
FIRST = WORDS.skin_first


@pytest.fixture
def model() -> TokenRigForCausalLM:
    torch.manual_seed(0)
    return TokenRigForCausalLM(
        TokenRigConfig(
            vocabulary=WORDS.to_dict(),
            mesh_encoder=MeshEncoderConfig(width=8, heads=2, num_encoder_layers=0, token_num=4).to_dict(),
            hidden_size=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=4,
            intermediate_size=8,
        )
    )


def table(model: TokenRigForCausalLM) -> torch.Tensor:
    return model.get_input_embeddings().weight


def vectors(model: TokenRigForCausalLM) -> torch.nn.Parameter:
    return model.get_input_embeddings().parametrizations.weight[0].vectors


def test_a_code_is_its_own_row_and_its_digits_vectors(model):
    before = table(model).detach().clone()
    share_features(model, [2, 3])
    torch.testing.assert_close(table(model), before, rtol=0, atol=0)  # they start at 0
    with torch.no_grad():
        vectors(model)[15:].copy_(torch.arange(5)[:, None] ** 2 * torch.ones(8))
    # Code c has the digits c % 2, of the vectors 0 and 1, and c // 2, of the vectors 2 to 4.
    expected = before.clone()
    expected[FIRST : FIRST + 6] += torch.tensor([0.0 + 4, 1 + 4, 0 + 9, 1 + 9, 0 + 16, 1 + 16])[:, None]
    torch.testing.assert_close(table(model), expected)
    torch.testing.assert_close(model.get_output_embeddings().weight, expected)


def test_a_codes_gradient_reaches_those_that_share_a_digit(model):
    share_features(model, [2, 3])
    table(model)[FIRST + 3].sum().backward()  # digits 1 and 1
    moved = vectors(model).grad.abs().sum(1) > 0
    assert moved.tolist() == [False] * 15 + [False, True, False, True, False]


def test_coordinates_are_waves_of_their_bins_centres(model):
    features = coordinate_features(4)
    # Centres -0.75, -0.25, 0.25, 0.75; the slowest wave has the angle 90 degrees times them.
    assert features[:, 0].tolist() == [-0.75, -0.25, 0.25, 0.75]
    torch.testing.assert_close(features[2, [1, 8]], torch.tensor([0.3826834, 0.9238795]))  # 22.5 degrees
    torch.testing.assert_close(features[2, [2, 9]], torch.tensor([0.7071068, 0.7071068]))  # 45 degrees
    before = table(model).detach().clone()
    share_features(model, [2, 3])
    with torch.no_grad():
        vectors(model)[0] = 2.0
    changed = table(model).detach() - before
    torch.testing.assert_close(changed[: WORDS.bins, 0], 2 * coordinate_features(WORDS.bins)[:, 0])
    assert not changed[WORDS.bins :].any()


def test_afterwards_the_model_is_a_plain_one(model):
    names = set(model.state_dict())
    share_features(model, [2, 3])
    with torch.no_grad():
        vectors(model).normal_()
    expected = table(model).detach().clone()
    merge_features(model)
    assert set(model.state_dict()) == names
    torch.testing.assert_close(table(model).detach(), expected, rtol=0, atol=0)
    assert model.get_output_embeddings().weight is table(model)


def test_levels_of_another_codebook(model):
    with pytest.raises(ValueError, match=r"FSQ levels \[2, 2\] have 4 codes, not 6"):
        share_features(model, [2, 2])
