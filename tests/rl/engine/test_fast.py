"""The fast engine draws the plain engine's tokens, whoever is in the batch, and never with stale weights."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from data.typed_recipe import RecipeError
from policy.bundle import RigPolicy
from policy.tokenrig.log_probs import row_uniforms
from policy.tokens.grammar import Grammar
from policy.tokens.skeleton_tokenizer import tokenize_skeleton
from rl.engine import buffers, fast, memory
from rl.engine.choose import make_sampler, sampling_dtype
from rl.engine.fast import FastSampler
from rl.engine.plain import PlainSampler
from rl.engine.sampler import Sampler, SamplingRequest
from rl.engine.self_check import model_scorer
from tests.rl import tiny

WORDS = tiny.VOCABULARY
ROWS, MESHES, LIMIT = 14, 3, 70
MODES = ["strict", "released", "fork"]
SKELETONS = [
    (),
    tuple(tokenize_skeleton(np.linspace(-0.8, 0.8, 9).reshape(3, 3), [-1, 0, 0], None, WORDS)[2:]),
    tuple(tokenize_skeleton(np.linspace(-0.9, 0.9, 24).reshape(8, 3), [-1, *range(7)], None, WORDS)[2:]),
]


@pytest.fixture
def model(policy: RigPolicy):
    with torch.no_grad():
        policy.model.transformer.model.norm.weight.mul_(4)  # logits of a few units
    return policy.model


def request(
    seed: int = 0, skeletons=None, limit: int = LIMIT, rows: int = ROWS, **options
) -> SamplingRequest:
    """Rows of three meshes and four classes in no order, with unequal numbers of rows per mesh."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.tensor([WORDS.class_id(name) for name in (None, "rignet", "vroid", "articulation")])
    return SamplingRequest(
        mesh_embeds=torch.randn(MESHES, tiny.MESH_TOKENS, 32, generator=generator),
        mesh_index=torch.randint(0, MESHES, (rows,), generator=generator),
        class_ids=classes[torch.randint(0, 4, (rows,), generator=generator)],
        skeletons=[()] * MESHES if skeletons is None else skeletons,
        uniforms=row_uniforms(range(100 * seed, 100 * seed + rows), limit),
        **options,
    )


def equal(first: Sampler, second: Sampler, wanted: SamplingRequest, tolerance: float = 1e-5) -> Tensor:
    """Both give the same tokens and log-probabilities; returns the tokens."""
    ids, log_probs = first.sample(wanted)
    other_ids, other_log_probs = second.sample(wanted)
    width = min(ids.shape[1], other_ids.shape[1])
    assert torch.equal(ids[:, :width], other_ids[:, :width])
    torch.testing.assert_close(log_probs[:, :width], other_log_probs[:, :width], atol=tolerance, rtol=0)
    for rest in (ids[:, width:], other_ids[:, width:]):
        assert (rest == WORDS.pad).all()
    return ids[:, :width]


def both(model, mode: str = "strict") -> tuple[FastSampler, PlainSampler]:
    grammar = Grammar(WORDS, mode)
    return FastSampler(model, grammar, torch.float32), PlainSampler(model, grammar)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 1.7},
        {"temperature": 0.6, "top_k": 5},
        {"top_p": 0.8},
        {"top_k": 7, "top_p": 0.9},
    ],
    ids=str,
)
def test_tokens_are_the_plain_engines(model, mode, options):
    engines = both(model, mode)
    for seed in range(3):
        equal(*engines, request(seed, **options))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_given_skeletons_of_unequal_length(model, mode, temperature):
    engines = both(model, mode)
    for seed in range(2):
        equal(*engines, request(seed, SKELETONS, limit=40, temperature=temperature))
        equal(*engines, request(seed, [SKELETONS[1], *SKELETONS[1:]], limit=17, temperature=temperature))


@pytest.mark.parametrize("limit", [1, 2, 3, 17])
def test_low_limits(model, limit):
    assert equal(*both(model), request(limit=limit)).shape == (ROWS, limit)


def test_one_row_and_one_mesh(model):
    for seed in range(3):
        equal(*both(model), request(seed, rows=1))


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("stage", [1, 3, 256])
def test_rows_leave_and_buffers_grow_at_every_position(model, monkeypatch, share, stage):
    plain, wanted = PlainSampler(model, Grammar(WORDS)), request(4, limit=100)
    monkeypatch.setattr(fast, "_CPU_SHARE", share)
    monkeypatch.setattr(memory, "FIRST_STAGE", stage)
    moved, grown = [], []
    keep, grow = buffers.BufferPool.keep, buffers.BufferPool.grow
    monkeypatch.setattr(buffers.BufferPool, "keep", lambda *a: moved.append(0) or keep(*a))
    monkeypatch.setattr(buffers.BufferPool, "grow", lambda *a: grown.append(0) or grow(*a))
    engine = FastSampler(model, Grammar(WORDS), torch.float32)
    for _ in range(2):  # the second request finds storage of another shape
        equal(engine, plain, wanted)
    assert bool(moved) == (share < 1)
    assert bool(grown) == (stage < 100)


def test_a_row_does_not_depend_on_its_batch(model):
    engine, _ = both(model)
    wanted = request(2, SKELETONS, limit=60)
    ids, log_probs = engine.sample(wanted)
    for rows in ([3], [13, 2, 7], list(range(0, ROWS, 2))):
        part = replace(
            wanted,
            mesh_index=wanted.mesh_index[rows],
            class_ids=wanted.class_ids[rows],
            uniforms=wanted.uniforms[rows],
        )
        own_ids, own_log_probs = engine.sample(part)
        width = min(own_ids.shape[1], ids.shape[1])
        assert torch.equal(own_ids[:, :width], ids[rows, :width])
        torch.testing.assert_close(own_log_probs[:, :width], log_probs[rows, :width], atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_log_probabilities_are_the_training_passs(model, mode, temperature):
    grammar = Grammar(WORDS, mode)
    wanted = request(1, SKELETONS, limit=60, temperature=temperature)
    ids, log_probs = FastSampler(model, grammar, torch.float32).sample(wanted)
    again = model_scorer(model, grammar)(wanted, ids)
    ended = (ids == WORDS.eos).cumsum(1) - (ids == WORDS.eos).long() > 0
    torch.testing.assert_close(log_probs, again.masked_fill(ended, 0.0), atol=1e-5, rtol=0)
    assert log_probs.sum(dim=1).std() > 1


def test_weights_are_refreshed_and_stale_ones_are_noticed(model):
    engine, plain = both(model)
    wanted = request()
    before = equal(engine, plain, wanted)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    model(input_ids=torch.randint(0, 16, (2, 9)), labels=torch.randint(0, 16, (2, 9))).loss.backward()
    optimiser.step()
    assert torch.equal(engine.sample(wanted)[0][:, : before.shape[1]], before)  # the old policy's
    with pytest.raises(AssertionError):
        equal(engine, plain, wanted)
    engine.refresh()
    equal(engine, plain, wanted)


def test_every_weight_is_refreshed(model):
    engine, plain = both(model)
    language = dict(model.transformer.named_parameters())
    assert len(language) > 20
    for parameter in language.values():
        with torch.no_grad():
            parameter.add_(torch.randn_like(parameter) * parameter.std().nan_to_num().clamp_min(0.1))
        engine.refresh()
        equal(engine, plain, request(limit=6))


def test_adapters_are_merged_and_the_model_is_left_alone(model):
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    base = copy.deepcopy(model)
    wrapped = get_peft_model(model, LoraConfig(r=2, lora_alpha=8, target_modules=names))
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    kept = {name: value.clone() for name, value in wrapped.state_dict().items()}
    grammar = Grammar(WORDS)
    engine = FastSampler(wrapped, grammar, torch.float32)
    tokens = equal(engine, PlainSampler(wrapped, grammar), request())
    other, _ = PlainSampler(base, grammar).sample(request())
    width = min(other.shape[1], tokens.shape[1])
    assert not torch.equal(other[:, :width], tokens[:, :width])
    assert all(torch.equal(value, kept[name]) for name, value in wrapped.state_dict().items())


def test_bfloat16_is_close_to_float32_on_given_tokens(model):
    grammar = Grammar(WORDS)
    wanted = request(limit=60)
    ids, log_probs = FastSampler(model, grammar, torch.bfloat16).sample(wanted)
    assert log_probs.dtype == torch.float32
    exact = model_scorer(model, grammar)(wanted, ids)
    difference = (log_probs - exact)[(log_probs != 0) & (exact != 0)].abs()
    assert 0 < difference.mean() < 0.03
    assert difference.max() < 0.3


def test_autocast_around_the_sampler_changes_nothing(model):
    engine, plain = both(model)
    ids, log_probs = plain.sample(request())
    with torch.autocast("cpu", torch.bfloat16):
        own_ids, own_log_probs = engine.sample(request())
    width = min(ids.shape[1], own_ids.shape[1])
    assert torch.equal(own_ids[:, :width], ids[:, :width])
    torch.testing.assert_close(own_log_probs[:, :width], log_probs[:, :width], atol=1e-5, rtol=0)


def test_the_head_over_all_tokens_draws_the_same(model):
    """The CUDA branch of the draw, on a CPU: one product over the vocabulary, the grammar as a mask."""
    engine, plain = both(model)
    head = engine._weights.head
    head.full = model.get_output_embeddings().weight.detach()
    head.skeleton = head.skin = None
    equal(engine, plain, request())


# ------------------------------------------------------------------ choice


def test_the_recipe_chooses(model, make_recipe):
    assert isinstance(make_sampler(model, make_recipe()), FastSampler)
    assert isinstance(make_sampler(model, make_recipe({"rollout.engine": "fast"})), FastSampler)
    assert isinstance(make_sampler(model, make_recipe({"rollout.engine": "plain"})), PlainSampler)


def test_the_dtype_follows_training(make_recipe):
    assert sampling_dtype(make_recipe()) == torch.float32
    assert sampling_dtype(make_recipe({"train.bf16": True})) == torch.bfloat16
    assert sampling_dtype(make_recipe({"train.bf16": True, "rollout.dtype": "float32"})) == torch.float32
    assert sampling_dtype(make_recipe({"rollout.dtype": "bfloat16"})) == torch.bfloat16


def test_an_unsupported_model_is_refused_or_reported(model, make_recipe, capsys):
    model.transformer.model.config.hidden_act = "gelu"
    with pytest.raises(RecipeError, match=r"computes SiLU, not gelu; set rollout\.engine=plain"):
        make_sampler(model, make_recipe({"rollout.engine": "fast"}))
    assert isinstance(make_sampler(model, make_recipe()), PlainSampler)
    assert "computes SiLU, not gelu; sampling with the plain engine" in capsys.readouterr().err


def test_adapters_that_cannot_be_merged_are_reported(model, make_recipe, capsys):
    wrapped = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], use_dora=True))
    assert isinstance(make_sampler(wrapped, make_recipe()), PlainSampler)
    assert "plain LoRA adapters" in capsys.readouterr().err
