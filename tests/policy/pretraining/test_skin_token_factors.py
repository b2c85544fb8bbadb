"""SkinTokens that share their digits' vectors: a table by hand, sharing, and a plain model afterwards."""

import pytest
import torch

from policy.pretraining.skin_token_factors import merge_digits, share_digits
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
    share_digits(model, [2, 3])
    torch.testing.assert_close(table(model), before, rtol=0, atol=0)  # they start at 0
    with torch.no_grad():
        vectors(model).copy_(torch.arange(5)[:, None] ** 2 * torch.ones(8))
    # Code c has the digits c % 2, of the vectors 0 and 1, and c // 2, of the vectors 2 to 4.
    expected = before.clone()
    expected[FIRST : FIRST + 6] += torch.tensor([0.0 + 4, 1 + 4, 0 + 9, 1 + 9, 0 + 16, 1 + 16])[:, None]
    torch.testing.assert_close(table(model), expected)
    torch.testing.assert_close(model.get_output_embeddings().weight, expected)


def test_a_codes_gradient_reaches_those_that_share_a_digit(model):
    share_digits(model, [2, 3])
    table(model)[FIRST + 3].sum().backward()  # digits 1 and 1
    assert (vectors(model).grad.abs().sum(1) > 0).tolist() == [False, True, False, True, False]


def test_afterwards_the_model_is_a_plain_one(model):
    names = set(model.state_dict())
    share_digits(model, [2, 3])
    with torch.no_grad():
        vectors(model).normal_()
    expected = table(model).detach().clone()
    merge_digits(model)
    assert set(model.state_dict()) == names
    torch.testing.assert_close(table(model).detach(), expected, rtol=0, atol=0)
    assert model.get_output_embeddings().weight is table(model)


def test_levels_of_another_codebook(model):
    with pytest.raises(ValueError, match=r"FSQ levels \[2, 2\] have 4 codes, not 6"):
        share_digits(model, [2, 2])
