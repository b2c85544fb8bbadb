"""Compares the fast rollout engine with the model at the start of a run, and chooses who samples."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from policy.tokenrig.log_probs import row_uniforms
from policy.tokenrig.modeling import TokenRigForCausalLM
from policy.tokens.grammar import PROMPT_LENGTH, Grammar
from policy.tokens.vocabulary import Vocabulary
from rl.engine.sampler import Sampler, SamplingRequest
from rl.prompts import SkeletonTokens, training_rows

# Scores given completions (B, L) of a request's rows: log-probabilities (B, L) float32, nats.
Scorer = Callable[[SamplingRequest, Tensor], Tensor]

# Tokens that the check samples per row, and joints of the skeleton that it prompts for SkinTokens.
_TOKENS = 24
_JOINTS = 3


@dataclass(frozen=True)
class Limits:
    """Largest differences of log-probabilities that rounding explains, nats: mean and single token."""

    mean: float
    worst: float


# float32: only the order of sums differs, by 1e-6 to 1e-5. bfloat16: the shipped policy differs from itself
# in float32 by 0.02 on average and by at most 0.3 over 1,900 sampled tokens. The limits leave room for deeper
# models; a wrong weight, mask or position shows by more.
LIMITS = {
    torch.float32: Limits(mean=1e-4, worst=1e-3),
    torch.bfloat16: Limits(mean=0.1, worst=1.0),
    torch.float16: Limits(mean=0.1, worst=1.0),
}


@dataclass(frozen=True)
class Difference:
    """Absolute difference of log-probabilities over `tokens` tokens, nats."""

    mean: float
    worst: float
    tokens: int

    def within(self, limits: Limits) -> bool:
        """Whether rounding explains it; never for NaN."""
        return self.mean <= limits.mean and self.worst <= limits.worst


class EngineCheckError(RuntimeError):
    """The fast engine was requested by name, but failed its check."""


class CheckedSampler:
    """`Sampler` that checks the fast engine on the first rows to sample, then uses it or the plain one.

    Meant for CUDA, where compiled and captured code runs that no test on a CPU can run. mode: `auto` warns on
    stderr and uses the plain engine if the check fails; `fast` raises EngineCheckError.
    """

    def __init__(
        self,
        fast: Sampler,
        plain: Sampler,
        score: Scorer,
        dtype: torch.dtype,
        mode: Literal["auto", "fast"] = "auto",
    ) -> None:
        self._fast: Sampler | None = fast
        self._plain, self._score, self._limits, self._mode = plain, score, LIMITS[dtype], mode
        self._dtype = dtype
        self._chosen: Sampler | None = None

    @property
    def grammar(self) -> Grammar:
        """The legal sequences."""
        return self._plain.grammar

    @property
    def positions(self) -> int:
        """Positions of the model."""
        return self._plain.positions

    def refresh(self) -> None:
        """Adopt the model's current weights."""
        for sampler in (self._fast, self._plain):
            if sampler is not None:
                sampler.refresh()

    def sample(self, request: SamplingRequest) -> tuple[Tensor, Tensor]:
        """See `Sampler`; the first call runs the check."""
        if self._chosen is None:
            self._chosen = self._choose(request)
        return self._chosen.sample(request)

    def _choose(self, request: SamplingRequest) -> Sampler:
        assert self._fast is not None
        cause: Exception | None = None
        try:
            found = compare(self._fast, self._score, request)
        except (MemoryError, torch.OutOfMemoryError):
            raise  # the plain engine needs more memory, not less
        except Exception as error:  # of many kinds: Triton, the compiler and CUDA have their own
            cause, problem = error, f"failed to run ({type(error).__name__}: {error})"
        else:
            if found.within(self._limits):
                return self._fast
            problem = (
                f"disagrees with the model: log-probabilities of {found.tokens} tokens differ by "
                f"{found.mean:.2g} nats on average and at most {found.worst:.2g}, but {self._name} rounding "
                f"explains {self._limits.mean:g} and {self._limits.worst:g}"
            )
        if self._mode == "fast":
            raise EngineCheckError(
                f"the fast rollout engine {problem}; set rollout.engine=plain, or auto to fall back to it"
            ) from cause
        print(
            f"warning: the fast rollout engine {problem}; sampling with the plain engine, which is slower",
            file=sys.stderr,
        )
        self._fast = None  # frees its weights and buffers
        return self._plain

    @property
    def _name(self) -> str:
        return str(self._dtype).removeprefix("torch.")


@torch.no_grad()
def compare(fast: Sampler, score: Scorer, request: SamplingRequest) -> Difference:
    """Sample a few tokens with the fast engine and score the same tokens with the model.

    Two engines that differ by rounding soon draw different tokens, so the draws are not compared: the tokens
    are the fast engine's own, given to the model.
    """
    small = check_request(request, fast.grammar.vocabulary, fast.positions)
    ids, fast_log_probs = fast.sample(small)
    log_probs = score(small, ids)
    used = (log_probs != 0) | (fast_log_probs != 0)  # forced tokens and padding say nothing
    differences = (log_probs - fast_log_probs)[used].abs()
    if len(differences) == 0:
        return Difference(float("nan"), float("nan"), 0)
    return Difference(differences.mean().item(), differences.max().item(), len(differences))


def check_request(request: SamplingRequest, vocabulary: Vocabulary, positions: int) -> SamplingRequest:
    """A few tokens of six rows on the request's first and last mesh.

    Three rows write the first mesh's skeleton, one the last's; two are given a skeleton, so that they sample
    SkinTokens at once and end early. Prefixes have different lengths, and meshes different numbers of rows.
    """
    first, last = int(request.mesh_index[0]), int(request.mesh_index[-1])
    chain = [vocabulary.bins // 2 + joint for joint in range(_JOINTS) for _ in range(3)]
    given: SkeletonTokens = [*chain, vocabulary.skeleton_eos]
    room = positions - request.mesh_embeds.shape[1] - PROMPT_LENGTH
    skeletons: list[SkeletonTokens] = [request.skeletons[first], request.skeletons[last], given]
    length = min(_TOKENS, room - max(map(len, skeletons)))
    return SamplingRequest(
        mesh_embeds=request.mesh_embeds[[first, last, last]],
        mesh_index=torch.tensor([0, 2, 0, 1, 2, 0]),
        class_ids=request.class_ids[:1].expand(6),
        skeletons=skeletons,
        uniforms=row_uniforms(range(6), length),
        temperature=request.temperature or 1.0,
    )


def model_scorer(model: TokenRigForCausalLM, grammar: Grammar) -> Scorer:
    """Scores completions by the model's own forward pass over whole sequences, without autocast."""

    @torch.no_grad()
    def score(request: SamplingRequest, completion_ids: Tensor) -> Tensor:
        device = request.mesh_embeds.device
        given = [request.skeletons[mesh] for mesh in request.mesh_index.tolist()]
        ids, lengths = training_rows(
            request.class_ids.to(device), given, completion_ids.to(device), grammar.vocabulary
        )
        was_training = model.training
        model.eval()
        try:
            with torch.autocast(device.type, enabled=False):
                output = model(
                    input_ids=ids,
                    completion_ids=completion_ids.to(device),
                    prompt_lengths=lengths,
                    mesh_embeds=request.mesh_embeds,
                    mesh_index=request.mesh_index.to(device),
                    grammar_mode=grammar.mode,
                    temperature=request.temperature,
                    entropy=False,
                )
        finally:
            model.train(was_training)
        log_probs: Tensor = output.log_probs
        return log_probs

    return score
