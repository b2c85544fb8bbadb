"""Non-finite logits and embeddings are refused by mesh and row, in every way of sampling."""

import math

import pytest
import torch

from data.command_line import RunFailedError
from policy.tokenrig.log_probs import sample_tokens
from policy.tokens.grammar import Grammar
from rl.beam_search import beam_search
from rl.engine.fast import FastSampler
from rl.engine.finite_logits import LOOK_EVERY, check_log_probs
from rl.engine.plain import PlainSampler
from rl.rollout import sample_rigs
from tests.rl import tiny

NAN, INF = math.nan, math.inf
NAMES = ["fox", "owl"]


@pytest.fixture
def setting():
    """A tiny policy, its grammar, and the embeddings of two meshes."""
    policy = tiny.make_policy()
    points = torch.randn(2, 64, 3, generator=torch.Generator().manual_seed(0))
    return policy.model, Grammar(policy.vocabulary), policy.encode_mesh(points, points).contiguous()


def sample(sampler, embeds, **options):
    """Two rollouts of each mesh."""
    classes = torch.full((4,), tiny.VOCABULARY.class_id("articulation"))
    return sample_rigs(
        sampler,
        embeds,
        torch.tensor([0, 0, 1, 1]),
        classes,
        max_new_tokens=60,
        seeds=range(4),
        names=NAMES,
        **options,
    )


ENGINES = {
    "plain": lambda model, grammar: PlainSampler(model, grammar),
    "fast": lambda model, grammar: FastSampler(model, grammar, torch.float32, static=False),
    "static": lambda model, grammar: FastSampler(model, grammar, torch.float32, static=True),
}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("engine", ENGINES)
def test_a_policy_with_nan_weights_is_refused(setting, engine, temperature):
    model, grammar, embeds = setting
    assert sample(ENGINES[engine](model, grammar), embeds).log_probs.isfinite().all()
    with torch.no_grad():
        model.transformer.model.layers[1].mlp.down_proj.weight[3, 5] = NAN
    with pytest.raises(
        RunFailedError, match=r"logits for mesh fox, owl are NaN.*4 of 4 rollouts \(row 0, 1, 2, 3\)"
    ):
        sample(ENGINES[engine](model, grammar), embeds, temperature=temperature)


@pytest.mark.parametrize("engine", ["plain", "static"])
def test_only_the_rows_that_meet_a_nan_are_named_and_soon(setting, engine, monkeypatch):
    """One mesh's prefix is NaN, as if attention had overflowed in it."""
    model, grammar, embeds = setting
    embeds[1, 2, 3] = NAN
    monkeypatch.setattr("rl.rollout.check_embeddings", lambda *arguments: None)
    looks = []
    monkeypatch.setattr(
        f"rl.engine.{'plain' if engine == 'plain' else 'fast'}.check_log_probs",
        lambda log_probs, *rest: (looks.append(log_probs.shape[1]), check_log_probs(log_probs, *rest)),
    )
    with pytest.raises(RunFailedError, match=r"logits for mesh owl are NaN.*2 of 4 rollouts \(row 2, 3\)"):
        sample(ENGINES[engine](model, grammar), embeds)
    assert looks == [LOOK_EVERY]


def test_beam_search_refuses_them_too(setting, monkeypatch):
    model, grammar, embeds = setting
    classes = torch.full((2,), tiny.VOCABULARY.class_id("articulation"))
    options = {"max_new_tokens": 40, "beams": 3, "names": NAMES}
    assert beam_search(model, embeds, classes, grammar, **options).log_probs.isfinite().all()
    embeds[1, 2, 3] = INF
    with pytest.raises(RunFailedError, match="embedding of mesh owl is NaN or infinite"):
        beam_search(model, embeds, classes, grammar, **options)
    monkeypatch.setattr("rl.beam_search.check_embeddings", lambda *arguments: None)
    with pytest.raises(RunFailedError, match="logits for mesh owl are NaN or infinite in 1 of 2"):
        beam_search(model, embeds, classes, grammar, **options)


def test_embeddings_are_refused_by_the_name_of_the_mesh(setting):
    model, grammar, embeds = setting
    embeds[1, 2, 3] = NAN
    with pytest.raises(RunFailedError, match="embedding of mesh owl is NaN or infinite"):
        sample(PlainSampler(model, grammar), embeds)


@pytest.mark.parametrize("vocabulary", [5, 256, 700])
@pytest.mark.parametrize("settings", [{}, {"temperature": 0.0}, {"top_k": 2}, {"top_p": 0.5}])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_every_bad_logit_shows_in_the_log_probability_of_its_row_alone(vocabulary, settings, value):
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(3, vocabulary, generator=generator)
    allowed = torch.ones(3, vocabulary, dtype=torch.bool)
    allowed[:, 0] = False
    uniforms = torch.rand(3, generator=generator, dtype=torch.float64)
    good = sample_tokens(logits, allowed, uniforms, **settings)
    # One bad logit, or for -inf all of them: a single -inf is a probability of 0.
    logits[1, 1:] = torch.where(torch.tensor(value == -INF), value, logits[1, 1:])
    logits[1, 3] = value
    logits[2, 0] = value  # illegal: it does not matter
    drawn = sample_tokens(logits, allowed, uniforms, **settings)
    assert drawn.log_probs.isfinite().tolist() == [True, False, True]
    assert drawn.tokens[[0, 2]].tolist() == good.tokens[[0, 2]].tolist()
    assert 0 <= int(drawn.tokens[1]) < vocabulary
