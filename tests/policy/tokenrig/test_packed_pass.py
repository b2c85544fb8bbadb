"""The packed pass against the repeated one: values and gradients of all weights, in every setting."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from policy.tokenrig.configuration import TokenRigConfig
from policy.tokenrig.mesh_encoder import MeshEncoderConfig
from policy.tokenrig.modeling import TokenRigForCausalLM
from policy.tokens.grammar import Grammar
from policy.tokens.vocabulary import Vocabulary
from tests.policy.random_completions import random_completions

VOCABULARY = Vocabulary(bins=16, codebook=64, tokens_per_skin=2)
MESH_TOKENS = 5


def make_model(**options: Any) -> TokenRigForCausalLM:
    torch.manual_seed(0)
    settings = {
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "intermediate_size": 37,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,  # so that attention is far from uniform
    }
    encoder = MeshEncoderConfig(width=16, heads=2, num_encoder_layers=1, token_num=MESH_TOKENS)
    config = TokenRigConfig(
        vocabulary=VOCABULARY.to_dict(), mesh_encoder=encoder.to_dict(), **{**settings, **options}
    )
    model = TokenRigForCausalLM(config)
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.normal_(weight, mean=1.0, std=0.3)
    return model.train()


@dataclass
class Batch:
    """Rows as the trainer passes them, and the same rows one by one for comparison."""

    inputs: dict[str, Any]
    mask: Tensor

    def rows(self, chosen: list[int]) -> dict[str, Any]:
        kept = {}
        for key, value in self.inputs.items():
            kept[key] = value[chosen] if key not in ("points", "normals", "mesh_embeds") else value
        return kept


def make_batch(lengths: list[int], meshes: list[int], skeletons: dict[int, list[int]] | None = None) -> Batch:
    """Completions of the given lengths of the given meshes, behind `[bos, class, skeleton...]`."""
    torch.manual_seed(1)
    grammar = Grammar(VOCABULARY)
    width = max(lengths)
    completions = random_completions(grammar, len(lengths), width, seed=3, noise=0.02)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    completions = completions.masked_fill(~mask, VOCABULARY.pad)
    prompts = [
        [VOCABULARY.bos, VOCABULARY.class_id("articulation"), *(skeletons or {}).get(mesh, [])]
        for mesh in meshes
    ]
    begins = torch.tensor([len(prompt) for prompt in prompts])
    ids = torch.full((len(lengths), int(begins.max()) + width), VOCABULARY.pad)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
        ids[row, len(prompt) : len(prompt) + width] = completions[row]
    inputs = {
        "input_ids": ids,
        "completion_ids": completions,
        "mesh_index": torch.tensor(meshes),
        "completion_lengths": torch.tensor(lengths),
        "points": torch.rand(max(meshes) + 1, 40, 3) * 2 - 1,
        "normals": torch.nn.functional.normalize(torch.randn(max(meshes) + 1, 40, 3), dim=-1),
    }
    if skeletons is not None:
        inputs["prompt_lengths"] = begins
    return Batch(inputs, mask)


def gradients(
    model: torch.nn.Module, batch: Batch, groups: list[list[int]] | None = None, **options: Any
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Log-probabilities, entropies and the gradients of a sum that weighs every token differently."""
    model.zero_grad()
    shape = batch.mask.shape
    weigh = torch.linspace(-1, 1, shape.numel()).view(shape)
    log_probs, entropies = torch.zeros(shape), torch.zeros(shape)
    for rows in groups or [list(range(shape[0]))]:
        out = model(**batch.rows(rows), **options)
        (out.log_probs * weigh[rows] + 0.3 * out.entropies * weigh[rows].flip(1)).sum().backward()
        log_probs[rows], entropies[rows] = out.log_probs.detach(), out.entropies.detach()
    return (
        log_probs,
        entropies,
        {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None},
    )


def assert_same(own, theirs) -> None:
    for ours, other in zip(own[:2], theirs[:2], strict=True):
        torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-5)
    assert own[2].keys() == theirs[2].keys()
    for name, grad in theirs[2].items():
        ours, other = own[2][name].double().flatten(), grad.double().flatten()
        if other.norm() < 1e-7:
            assert ours.norm() < 1e-6, name
            continue
        assert torch.nn.functional.cosine_similarity(ours, other, dim=0) > 0.99999, name
        assert float(ours.norm()) == pytest.approx(float(other.norm()), rel=1e-4), name


SKELETON = [3, 4, 5, 7, 2, 9]
BATCHES = {
    "one group": ([7, 12, 9, 12], [0, 0, 0, 0]),
    "several meshes, mixed": ([13, 1, 5, 21, 1, 8, 30], [2, 0, 0, 2, 1, 0, 2]),
    "rows of length 1 only": ([1, 1, 1], [0, 0, 1]),
    "equal lengths": ([6] * 6, [0, 0, 1, 1, 2, 2]),
    "a row without tokens": ([0, 4, 9], [0, 0, 1]),
    "one row": ([17], [0]),
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": False}, {"use_reentrant": True}])
def test_values_and_gradients(name, checkpointing):
    model, batch = make_model(), make_batch(*BATCHES[name])
    plain = gradients(model, batch)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
    packed = gradients(model, batch, packed=True)
    assert len(plain[2]) == len(list(model.parameters()))  # the mesh encoder's among them
    assert_same(packed, plain)
    assert (packed[0][~batch.mask] == 0).all()


def test_skeletons_of_unequal_length():
    grammar = Grammar(VOCABULARY)
    given = random_completions(grammar, 3, 30, seed=5).tolist()
    skeletons = {
        k: row[: row.index(VOCABULARY.eos) + 1] if VOCABULARY.eos in row else row[: 9 + 2 * k]
        for k, row in enumerate(given)
    }
    assert len({len(skeleton) for skeleton in skeletons.values()}) > 1
    batch = make_batch([13, 1, 5, 21, 1, 8, 30], [2, 0, 0, 2, 1, 0, 2], skeletons)
    model = make_model()
    assert_same(gradients(model, batch, packed=True), gradients(model, batch))
