"""Log-probabilities: sliced and chunked values and gradients equal plain ones, and those of sampling."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import policy.tokenrig.log_probs
from policy.tokenrig.log_probs import (
    ILLEGAL_LOG_PROB,
    CompletionLogProbs,
    completion_log_probs,
    head_logits,
    row_uniforms,
    sample_tokens,
)
from policy.tokens.grammar import Grammar, GrammarState, Mode
from policy.tokens.vocabulary import Vocabulary
from tests.policy.random_completions import random_completions

MODES: tuple[Mode, ...] = ("strict", "released", "fork")
SMALL = Vocabulary(bins=3, parts=("tail",), classes=("a",), codebook=4, tokens_per_skin=2)
# coordinates 0..2, branch 3, bos 4, skeleton eos 5, pad 6, spring 7, tail 8, none 9, a 10, skin 11..14,
# eos 15
ODD = Vocabulary(bins=5, parts=(), classes=("a", "b"), codebook=37, tokens_per_skin=3)


def plain_log_probs(
    hidden: Tensor,
    head_weight: Tensor,
    completion_ids: Tensor,
    grammar: Grammar,
    temperature: float = 1.0,
    mask: Tensor | None = None,
    start: GrammarState | None = None,
) -> CompletionLogProbs:
    """Readable reference: step the grammar, mask the whole vocabulary, log-softmax."""
    state = grammar.start(len(completion_ids), hidden.device) if start is None else start
    used = torch.ones_like(completion_ids, dtype=torch.bool) if mask is None else mask.bool()
    log_probs, entropies = [], []
    for t in range(completion_ids.shape[1]):
        allowed, tokens = grammar.allowed(state), completion_ids[:, t]
        logits = head_logits(hidden[:, t], head_weight) / temperature
        logp = logits.masked_fill(~allowed, -torch.inf).log_softmax(dim=1)
        finite = logp.masked_fill(~allowed, 0.0)
        legal = allowed.gather(1, tokens[:, None])[:, 0]
        padding = ~used[:, t] | ((tokens == grammar.vocabulary.pad) & ~legal)
        chosen = torch.where(legal, finite.gather(1, tokens[:, None])[:, 0], ILLEGAL_LOG_PROB)
        log_probs.append(chosen.masked_fill(padding, 0.0))
        entropies.append(-(logp.exp() * finite).sum(dim=1).masked_fill(padding, 0.0))
        stepped = grammar.step(state, tokens)
        state = GrammarState(
            *(
                torch.where(used[:, t], getattr(stepped, field), getattr(state, field))
                for field in ("state", "bones", "skin")
            )
        )
    return CompletionLogProbs(torch.stack(log_probs, dim=1), torch.stack(entropies, dim=1))


def inputs(grammar: Grammar, rows: int, length: int, width: int, seed: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, length, width, generator=random)
    return hidden, torch.randn(grammar.vocabulary.size, width, generator=random) / math.sqrt(width)


def gradients(function: Any, hidden: Tensor, weight: Tensor, which: str, *rest: Any, **more: Any) -> Any:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    result = function(hidden, weight, *rest, **more)
    random = torch.Generator().manual_seed(5)
    loss = torch.zeros(())
    for name in which.split("+"):
        value = getattr(result, name)
        loss = loss + (value * torch.randn(value.shape, generator=random)).sum()
    return torch.autograd.grad(loss, (hidden, weight))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.9])
@pytest.mark.parametrize("noise", [0.0, 0.15])
@pytest.mark.parametrize(
    ("vocabulary", "rows", "length", "width", "chunk"),
    [(SMALL, 1, 1, 1, 1 << 20), (SMALL, 3, 29, 5, 12), (ODD, 2, 67, 7, 100), (ODD, 5, 41, 8, 1 << 20)],
)
def test_values_and_gradients_equal_the_reference(
    mode: Mode,
    temperature: float,
    noise: float,
    vocabulary: Vocabulary,
    rows: int,
    length: int,
    width: int,
    chunk: int,
) -> None:
    grammar = Grammar(vocabulary, mode)
    ids = random_completions(grammar, rows, length, seed=length, noise=noise)
    hidden, weight = inputs(grammar, rows, length, width, seed=rows)
    found = completion_log_probs(hidden, weight, ids, grammar, temperature, chunk_elements=chunk)
    expected = plain_log_probs(hidden, weight, ids, grammar, temperature)
    assert found.log_probs.shape == found.entropies.shape == ids.shape
    torch.testing.assert_close(found.log_probs, expected.log_probs, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(found.entropies, expected.entropies, atol=1e-5, rtol=1e-6)
    for which in ("log_probs", "entropies", "log_probs+entropies"):
        ours = gradients(
            completion_log_probs, hidden, weight, which, ids, grammar, temperature, chunk_elements=chunk
        )
        plain = gradients(plain_log_probs, hidden, weight, which, ids, grammar, temperature)
        for one, other in zip(ours, plain, strict=True):
            torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)
    without = gradients(
        completion_log_probs, hidden, weight, "log_probs", ids, grammar, temperature, entropy=False
    )
    plain = gradients(plain_log_probs, hidden, weight, "log_probs", ids, grammar, temperature)
    torch.testing.assert_close(without, plain, atol=2e-5, rtol=1e-4)


def test_by_hand_with_a_flat_head() -> None:
    # root: 3 coordinates legal each; after it 3 + branch + eos = 5; skin: 4 codes; eos and pads are forced
    ids = torch.tensor([[0, 1, 2, 5, 11, 14, 15, 6, 6]])
    legal = torch.tensor([[3.0, 3, 3, 5, 4, 4, 1, 1, 1]])
    grammar = Grammar(SMALL)
    for temperature in (0.5, 1.0):
        result = completion_log_probs(torch.randn(1, 9, 2), torch.zeros(16, 2), ids, grammar, temperature)
        torch.testing.assert_close(result.log_probs, -legal.log())
        torch.testing.assert_close(result.entropies, legal.log())


def test_by_hand_with_two_temperatures() -> None:
    # head = token id / 10, hidden = 1: logits of coordinates 0, 0.1, 0.2
    weight = (torch.arange(16.0) / 10)[:, None]
    for temperature in (1.0, 0.5):
        masses = [math.exp(0.1 * k / temperature) for k in range(3)]
        expected = [mass / sum(masses) for mass in masses]
        result = completion_log_probs(
            torch.ones(1, 1, 1), weight, torch.tensor([[2]]), Grammar(SMALL), temperature
        )
        assert result.log_probs.item() == pytest.approx(math.log(expected[2]), abs=1e-6)
        assert result.entropies is not None
        assert result.entropies.item() == pytest.approx(-sum(p * math.log(p) for p in expected), abs=1e-6)


def test_gradients_equal_finite_differences() -> None:
    grammar = Grammar(SMALL)
    ids = random_completions(grammar, 2, 20, seed=3)
    hidden, weight = inputs(grammar, 2, 20, 4, seed=4)
    random = torch.Generator().manual_seed(6)
    for which in ("log_probs", "entropies"):
        along = [torch.randn(t.shape, generator=random) for t in (hidden, weight)]
        step = 1e-2

        def loss(h: Tensor, w: Tensor, which: str = which) -> Tensor:
            return getattr(completion_log_probs(h, w, ids, grammar), which).double().sum()

        leaves = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
        analytic = sum(
            (g * a).sum() for g, a in zip(torch.autograd.grad(loss(*leaves), leaves), along, strict=True)
        )
        ahead = loss(hidden + step * along[0], weight + step * along[1])
        behind = loss(hidden - step * along[0], weight - step * along[1])
        assert float(analytic) == pytest.approx(((ahead - behind) / (2 * step)).item(), rel=5e-3)


def test_half_precision_input_is_accumulated_in_float32() -> None:
    grammar = Grammar(ODD)
    ids = random_completions(grammar, 3, 50, seed=1)
    hidden, weight = (t.bfloat16() for t in inputs(grammar, 3, 50, 8, seed=2))
    found = completion_log_probs(hidden, weight, ids, grammar)
    exact = plain_log_probs(hidden.float(), weight.float(), ids, grammar)
    assert found.log_probs.dtype == torch.float32
    torch.testing.assert_close(found.log_probs, exact.log_probs, atol=1e-5, rtol=1e-6)
    torch.testing.assert_close(found.entropies, exact.entropies, atol=1e-5, rtol=1e-6)
    ours = gradients(completion_log_probs, hidden, weight, "log_probs", ids, grammar)
    plain = gradients(plain_log_probs, hidden.float(), weight.float(), "log_probs", ids, grammar)
    for one, other in zip(ours, plain, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.float(), other, atol=1e-2, rtol=1e-2)  # rounded once, at the end


def test_autocast_does_not_lower_the_precision() -> None:
    grammar = Grammar(ODD)
    ids = random_completions(grammar, 2, 40, seed=1)
    hidden, weight = inputs(grammar, 2, 40, 8, seed=2)
    plain = gradients(completion_log_probs, hidden, weight, "log_probs+entropies", ids, grammar)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        within = gradients(completion_log_probs, hidden, weight, "log_probs+entropies", ids, grammar)
        assert head_logits(hidden, weight).dtype == torch.float32
    torch.testing.assert_close(within, plain)


@pytest.mark.parametrize("kept", [True, False])
def test_chunks_hold_no_more_logits_than_requested(kept: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    original = policy.tokenrig.log_probs._masked_logits

    def recorded(*arguments: Any) -> Tensor:
        logits = original(*arguments)
        sizes.append(logits.numel())
        return logits

    monkeypatch.setattr(policy.tokenrig.log_probs, "_masked_logits", recorded)
    if not kept:
        monkeypatch.setattr(policy.tokenrig.log_probs, "KEPT_ELEMENTS", 0)
    grammar = Grammar(ODD)
    ids = random_completions(grammar, 4, 60, seed=1)
    hidden, weight = inputs(grammar, 4, 60, 8, seed=2)
    gradients(completion_log_probs, hidden, weight, "log_probs", ids, grammar, chunk_elements=111)
    phases = grammar.scan(ids).phase
    # every legal position once forward, and once backward unless it is kept: 13 skeleton ids or 37 codes
    # each, forced ones none
    assert ODD.skin_first == 13
    assert max(sizes) == 111
    once = int((phases == 0).sum()) * 13 + int((phases == 1).sum()) * 37
    assert sum(sizes) == (once if kept else 2 * once)


def test_kept_and_recomputed_log_probs_give_equal_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    grammar = Grammar(ODD)
    ids = random_completions(grammar, 4, 60, seed=1)
    hidden, weight = inputs(grammar, 4, 60, 8, seed=2)
    for which in ("log_probs", "entropies"):
        results = []
        for budget in (1 << 28, 0):
            monkeypatch.setattr(policy.tokenrig.log_probs, "KEPT_ELEMENTS", budget)
            results.append(
                gradients(completion_log_probs, hidden, weight, which, ids, grammar, chunk_elements=111)
            )
        torch.testing.assert_close(*results, atol=1e-6, rtol=1e-5)


def test_frozen_parts_get_no_gradient() -> None:
    grammar = Grammar(SMALL)
    ids = random_completions(grammar, 2, 20, seed=3)
    hidden, weight = inputs(grammar, 2, 20, 4, seed=4)
    weight.requires_grad_()
    completion_log_probs(hidden, weight, ids, grammar).log_probs.sum().backward()
    assert hidden.grad is None
    assert weight.grad is not None
    with torch.no_grad():
        assert not completion_log_probs(hidden, weight, ids, grammar).log_probs.requires_grad


def test_only_forced_positions_still_have_a_graph() -> None:
    grammar = Grammar(SMALL)
    hidden = torch.randn(1, 2, 4, requires_grad=True)
    done = grammar.advance(grammar.start(1), torch.tensor([[0, 1, 2, 5, 11, 11]]))
    result = completion_log_probs(hidden, torch.randn(16, 4), torch.tensor([[15, 6]]), grammar, start=done)
    assert result.log_probs.tolist() == [[0.0, 0.0]]
    result.log_probs.sum().backward()
    assert hidden.grad is not None
    assert not hidden.grad.any()


def test_illegal_tokens_have_a_finite_log_prob_and_no_gradient() -> None:
    grammar = Grammar(SMALL)
    # branch as a first coordinate; an early final eos; a SkinToken too many
    ids = torch.tensor([[3, 0, 0, 0, 0, 0, 0], [0, 1, 2, 5, 15, 6, 6], [0, 1, 2, 5, 11, 11, 11]])
    hidden, weight = inputs(grammar, 3, 7, 4, seed=1)
    found = completion_log_probs(hidden.requires_grad_(), weight, ids, grammar).log_probs
    illegal = found == ILLEGAL_LOG_PROB
    assert illegal.int().argmax(dim=1).tolist() == [0, 4, 6]
    found[illegal].sum().backward()
    assert hidden.grad is not None
    assert not hidden.grad.any()


@pytest.mark.parametrize("mode", MODES)
def test_padding_after_a_truncated_row_is_zero(mode: Mode) -> None:
    grammar = Grammar(SMALL, mode)
    hidden, weight = inputs(grammar, 2, 9, 4, seed=1)
    pad = SMALL.pad
    ids = torch.tensor([[0, 1, 2, 3, 0, pad, pad, pad, pad], [0, 1, 2, 5, 11, pad, pad, pad, pad]])
    mask = ids != pad
    masked = completion_log_probs(hidden, weight, ids, grammar, mask=mask)
    short = completion_log_probs(hidden[:, :5], weight, ids[:, :5], grammar)
    plain = plain_log_probs(hidden, weight, ids, grammar, mask=mask)
    for name in ("log_probs", "entropies"):
        values = getattr(masked, name)
        assert not values[:, 5:].any()
        torch.testing.assert_close(values[:, :5], getattr(short, name))
        torch.testing.assert_close(values, getattr(plain, name), atol=1e-5, rtol=1e-6)
        if mode != "released":  # under which pads are legal SkinTokens
            unmasked = completion_log_probs(hidden, weight, ids, grammar)
            torch.testing.assert_close(getattr(unmasked, name), values)


def test_a_given_start_state() -> None:
    grammar = Grammar(ODD)
    ids = random_completions(grammar, 3, 50, seed=8)
    hidden, weight = inputs(grammar, 3, 50, 6, seed=2)
    whole = completion_log_probs(hidden, weight, ids, grammar)
    start = grammar.advance(grammar.start(3), ids[:, :17])
    for function in (completion_log_probs, plain_log_probs):
        rest = function(hidden[:, 17:], weight, ids[:, 17:], grammar, start=start)
        torch.testing.assert_close(rest.log_probs, whole.log_probs[:, 17:])
        torch.testing.assert_close(rest.entropies, whole.entropies[:, 17:])


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_training_agrees_with_sampling(mode: Mode, temperature: float) -> None:
    grammar, rows, length = Grammar(ODD, mode), 6, 70
    hidden, weight = inputs(grammar, rows, length, 9, seed=3)
    uniforms = row_uniforms(range(rows), length)
    state, tokens, log_probs = grammar.start(rows), [], []
    for t in range(length):
        drawn = sample_tokens(
            head_logits(hidden[:, t], weight), grammar.allowed(state), uniforms[:, t], temperature
        )
        tokens.append(drawn.tokens)
        log_probs.append(drawn.log_probs)
        state = grammar.step(state, drawn.tokens)
    ids = torch.stack(tokens, dim=1)
    assert grammar.scan(ids).legal.all()
    trained = completion_log_probs(hidden, weight, ids, grammar, temperature)
    torch.testing.assert_close(trained.log_probs, torch.stack(log_probs, dim=1), atol=1e-5, rtol=0)


def test_evenly_spaced_noise_gives_the_distribution_itself() -> None:
    random = torch.Generator().manual_seed(1)
    logits, count, temperature = torch.randn(30, generator=random) * 2, 20_000, 0.8
    allowed = torch.rand(30, generator=random) < 0.6
    expected = (logits / temperature).masked_fill(~allowed, -torch.inf).softmax(dim=0)
    uniforms = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    drawn = sample_tokens(logits.expand(count, 30), allowed.expand(count, 30), uniforms, temperature)
    frequency = torch.bincount(drawn.tokens, minlength=30) / count
    # an interval of length p holds p * count points, give or take one
    assert (frequency - expected).abs().max() <= 1.01 / count + 1e-6
    torch.testing.assert_close(drawn.log_probs, expected.log()[drawn.tokens], atol=1e-5, rtol=0)


def test_seeded_noise_samples_the_distribution() -> None:
    # 4,000 rows, one step each: chi-square of 9 degrees of freedom is above 27.9 once in a thousand seeds
    logits = torch.linspace(-1, 1, 10)
    count = 4000
    uniforms = row_uniforms(range(count), 1)[:, 0]
    drawn = sample_tokens(logits.expand(count, 10), torch.ones(count, 10, dtype=torch.bool), uniforms)
    expected = logits.softmax(dim=0) * count
    observed = torch.bincount(drawn.tokens, minlength=10)
    assert ((observed - expected) ** 2 / expected).sum() < 27.9


def test_a_rows_sample_does_not_depend_on_the_batch() -> None:
    random = torch.Generator().manual_seed(2)
    logits, allowed = torch.randn(8, 50, generator=random), torch.rand(8, 50, generator=random) < 0.5
    seeds = [11, 5, 5, 900, 2**40, 0, 7, 1]
    uniforms = row_uniforms(seeds, 9)
    for settings in ({}, {"top_k": 7}, {"top_p": 0.6}, {"top_k": 9, "top_p": 0.8, "temperature": 2.0}):
        for t in range(9):
            whole = sample_tokens(logits, allowed, uniforms[:, t], **settings)
            for rows in ([3], [7, 1, 3]):
                alone = row_uniforms([seeds[i] for i in rows], t + 1)[:, t]
                part = sample_tokens(logits[rows], allowed[rows], alone, **settings)
                assert torch.equal(part.tokens, whole.tokens[rows])
                assert torch.equal(part.log_probs, whole.log_probs[rows])


def test_seeds_make_rows() -> None:
    both = row_uniforms([3, 4, 3], 40)
    assert (both.dtype, both.shape) == (torch.float64, (3, 40))
    assert torch.equal(both[0], both[2])
    assert not torch.equal(both[0], both[1])
    assert torch.equal(row_uniforms([3], 7)[0], both[0, :7])
    assert ((both >= 0) & (both < 1)).all()
    assert row_uniforms([], 5).shape == (0, 5)


def test_greedy_and_restricted_choices_by_hand() -> None:
    # probabilities 0.4, 0.3, 0.2, 0.1 of tokens 1, 3, 0, 4; token 2 is illegal although its logit is largest
    logits = torch.tensor([[math.log(0.2), math.log(0.4), 9.0, math.log(0.3), math.log(0.1)]])
    allowed = torch.tensor([[True, True, False, True, True]])

    def choices(**settings: Any) -> set[int]:
        grid = (torch.arange(400, dtype=torch.float64) + 0.5) / 400
        drawn = sample_tokens(logits.expand(400, 5), allowed.expand(400, 5), grid, **settings)
        return set(drawn.tokens.tolist())

    assert choices() == {0, 1, 3, 4}
    assert choices(temperature=0) == {1}
    assert choices(top_k=1) == {1}
    assert choices(top_k=3) == {0, 1, 3}
    assert choices(top_k=100) == {0, 1, 3, 4}
    assert choices(top_p=0.39) == {1}  # the mass before token 3, 0.4, has reached it
    assert choices(top_p=0.5) == {1, 3}
    assert choices(top_p=0.75) == {0, 1, 3}
    assert choices(top_p=1e-9) == {1}
    assert choices(top_k=2, top_p=0.6) == {1, 3}  # of the two kept, token 1 has 0.4 / 0.7 = 0.57 < 0.6
    assert choices(top_k=2, top_p=0.5) == {1}
    greedy = sample_tokens(logits, allowed, torch.zeros(1), temperature=0)
    assert greedy.log_probs.item() == pytest.approx(math.log(0.4), abs=1e-6)
    restricted = sample_tokens(logits, allowed, torch.zeros(1), top_k=1)
    assert restricted.log_probs.item() == pytest.approx(math.log(0.4), abs=1e-6)


def test_noise_at_the_ends_stays_legal() -> None:
    logits = torch.zeros(4, 6)
    logits[:, 4] = -1e5  # legal, but of no weight
    allowed = torch.tensor([[False, True, False, True, True, False]]).expand(4, 6)
    noise = torch.tensor([0.0, 0.4999999, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert sample_tokens(logits, allowed, noise).tokens.tolist() == [1, 1, 3, 3]
    assert sample_tokens(logits, allowed, torch.ones(4)).tokens.tolist() == [3] * 4


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_cuda_device_gives_the_same_numbers() -> None:
    grammar = Grammar(ODD)
    ids = random_completions(grammar, 3, 50, seed=1)
    hidden, weight = inputs(grammar, 3, 50, 8, seed=2)
    here = completion_log_probs(hidden, weight, ids, grammar)
    there = completion_log_probs(hidden.cuda(), weight.cuda(), ids.cuda(), grammar)
    torch.testing.assert_close(there.log_probs.cpu(), here.log_probs, atol=1e-4, rtol=1e-4)
    uniforms, logits = row_uniforms(range(3), 1)[:, 0], head_logits(hidden[:, 0], weight)
    allowed = grammar.allowed(grammar.start(3))
    drawn = sample_tokens(logits.cuda(), allowed.cuda(), uniforms)
    assert torch.equal(drawn.tokens.cpu(), sample_tokens(logits, allowed, uniforms).tokens)


def test_bad_arguments_are_reported() -> None:
    grammar = Grammar(SMALL)
    ids = torch.zeros(2, 3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"\(2, 4, 5\) and ids \(2, 3\)"):
        completion_log_probs(torch.zeros(2, 4, 5), torch.zeros(16, 5), ids, grammar)
    with pytest.raises(ValueError, match=r"\(17, 5\).*\(16, 5\)"):
        completion_log_probs(torch.zeros(2, 3, 5), torch.zeros(17, 5), ids, grammar)
    with pytest.raises(ValueError, match="temperature is 0; it must be above 0"):
        completion_log_probs(torch.zeros(2, 3, 5), torch.zeros(16, 5), ids, grammar, temperature=0)
    flat, legal = torch.zeros(1, 4), torch.ones(1, 4, dtype=torch.bool)
    for settings in ({"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"top_p": 1.5}):
        with pytest.raises(ValueError, match="out of range"):
            sample_tokens(flat, legal, torch.zeros(1), **settings)
