"""The check of the fast engine at the start of a run: faults of every kind are caught and reported."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from policy.tokenrig.log_probs import row_uniforms
from policy.tokenrig.modeling import TokenRigForCausalLM
from policy.tokens.grammar import Grammar
from rl.engine.plain import PlainSampler
from rl.engine.sampler import SamplingRequest
from rl.engine.self_check import CheckedSampler, EngineCheckError, check_request, compare, model_scorer
from tests.rl import tiny

GRAMMAR = Grammar(tiny.VOCABULARY)
CLASS = tiny.VOCABULARY.class_id("articulation")


def a_model() -> TokenRigForCausalLM:
    return tiny.make_policy().model


def a_request(model: TokenRigForCausalLM) -> SamplingRequest:
    generator = torch.Generator().manual_seed(5)
    embeds = torch.randn(3, tiny.MESH_TOKENS, model.config.hidden_size, generator=generator)
    return SamplingRequest(
        mesh_embeds=embeds,
        mesh_index=torch.tensor([0, 0, 1, 2]),
        class_ids=torch.full((4,), CLASS),
        skeletons=[(), (), ()],
        uniforms=row_uniforms(range(4), 40),
    )


class Sabotaged(PlainSampler):
    """Stands for a fast engine with a fault: works on altered weights, requests or results."""

    def __init__(self, model: TokenRigForCausalLM, fault: str) -> None:
        super().__init__(copy.deepcopy(model), GRAMMAR)
        self.fault, self.calls = fault, 0
        with torch.no_grad():
            if fault == "stale weights":
                for parameter in self.model.transformer.parameters():
                    parameter.mul_(1.05)
            if fault == "wrong rotation":
                self.model.transformer.model.rotary_emb.inv_freq.mul_(1.3)

    def sample(self, request: SamplingRequest) -> tuple[Tensor, Tensor]:
        self.calls += 1
        if self.fault == "no kernel":
            raise RuntimeError("out of resources: shared memory")
        if self.fault == "no memory":
            raise MemoryError("lower rollout.batch_size")
        if self.fault == "wrong mesh":
            request = replace(request, mesh_embeds=request.mesh_embeds.flip(0))
        if self.fault == "hot":
            request = replace(request, temperature=1.2)
        ids, log_probs = super().sample(request)
        if self.fault == "nan":
            log_probs[0, 2] = math.nan
        if self.fault == "skin":
            log_probs = torch.where(ids >= tiny.VOCABULARY.skin_first, log_probs - 0.1, log_probs)
        if self.fault == "illegal":
            ids[0, 1] = tiny.VOCABULARY.bos
        return ids, log_probs


WRONG = ["stale weights", "wrong rotation", "wrong mesh", "hot", "nan", "skin", "illegal"]


def checked(model: TokenRigForCausalLM, fast: PlainSampler, mode: str = "auto") -> CheckedSampler:
    plain = PlainSampler(model, GRAMMAR)
    return CheckedSampler(fast, plain, model_scorer(model, GRAMMAR), torch.float32, mode)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", ["auto", "fast"])
def test_a_sound_engine_is_used_without_a_word(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = a_model()
    fast, request = Sabotaged(model, "none"), a_request(model)
    sampler = checked(model, fast, mode)
    expected = PlainSampler(model, GRAMMAR).sample(request)
    for _ in range(2):
        ids, log_probs = sampler.sample(request)
        assert torch.equal(ids, expected[0])
        torch.testing.assert_close(log_probs, expected[1])
    assert fast.calls == 3  # one check, two samples
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_engine_is_replaced_with_one_warning(fault: str, capsys: pytest.CaptureFixture[str]) -> None:
    model = a_model()
    fast, request = Sabotaged(model, fault), a_request(model)
    sampler = checked(model, fast)
    expected = PlainSampler(model, GRAMMAR).sample(request)
    for _ in range(2):
        ids, log_probs = sampler.sample(request)
        assert torch.equal(ids, expected[0])
        torch.testing.assert_close(log_probs, expected[1])
    sampler.refresh()
    assert fast.calls == 1
    message = capsys.readouterr().err
    assert message.count("warning: the fast rollout engine disagrees with the model") == 1
    assert "float32 rounding explains 0.0001 and 0.001" in message
    assert "sampling with the plain engine" in message


@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_engine_that_was_requested_is_an_error(fault: str) -> None:
    model = a_model()
    sampler = checked(model, Sabotaged(model, fault), "fast")
    with pytest.raises(EngineCheckError, match=r"disagrees .* set rollout\.engine=plain, or auto"):
        sampler.sample(a_request(model))


def test_an_engine_that_cannot_run_is_replaced_or_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    model = a_model()
    checked(model, Sabotaged(model, "no kernel")).sample(a_request(model))
    assert "failed to run (RuntimeError: out of resources: shared memory)" in capsys.readouterr().err
    with pytest.raises(EngineCheckError, match="failed to run") as error:
        checked(model, Sabotaged(model, "no kernel"), "fast").sample(a_request(model))
    assert isinstance(error.value.__cause__, RuntimeError)


def test_too_little_memory_is_an_error_in_both_modes() -> None:
    model = a_model()
    for mode in ("auto", "fast"):
        with pytest.raises(MemoryError, match=r"rollout\.batch_size"):
            checked(model, Sabotaged(model, "no memory"), mode).sample(a_request(model))


def test_bfloat16_rounding_is_within_its_limits() -> None:
    model = a_model()
    half = PlainSampler(copy.deepcopy(model).bfloat16(), GRAMMAR)

    class Half(Sabotaged):
        def sample(self, request: SamplingRequest) -> tuple[Tensor, Tensor]:
            return half.sample(replace(request, mesh_embeds=request.mesh_embeds.bfloat16()))

    fast, plain = Half(model, "none"), PlainSampler(model, GRAMMAR)
    score = model_scorer(model, GRAMMAR)
    difference = compare(fast, score, a_request(model))
    assert 1e-4 < difference.mean < 0.05
    CheckedSampler(fast, plain, score, torch.bfloat16, "fast").sample(a_request(model))
    with pytest.raises(EngineCheckError):
        CheckedSampler(fast, plain, score, torch.float32, "fast").sample(a_request(model))


def test_the_check_covers_both_phases_and_unequal_prefixes() -> None:
    model = a_model()
    small = check_request(a_request(model), tiny.VOCABULARY, tiny.POSITIONS)
    ids, log_probs = PlainSampler(model, GRAMMAR).sample(small)
    assert len({len(skeleton) for skeleton in small.skeletons}) == 2
    assert ((ids < tiny.VOCABULARY.skin_first) & (log_probs != 0)).any()
    skin = (ids >= tiny.VOCABULARY.skin_first) & (ids < tiny.VOCABULARY.eos)
    assert skin[[1, 4]].sum(dim=1).tolist() == [6, 6]  # three joints of two SkinTokens
    assert (ids[[1, 4]] == tiny.VOCABULARY.eos).any(dim=1).all()


def test_the_check_fits_a_model_of_few_positions() -> None:
    small = check_request(a_request(a_model()), tiny.VOCABULARY, tiny.MESH_TOKENS + 2 + 10 + 5)
    assert small.uniforms.shape == (6, 5)
