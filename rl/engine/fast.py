"""The fast rollout engine: shared prefixes, packed weights, static buffers; one graph per token on CUDA."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from policy.tokens.grammar import Grammar, GrammarState
from rl.engine.buffers import BufferPool
from rl.engine.capture import Step, StepGraphs
from rl.engine.draw import DrawSettings
from rl.engine.finite_logits import LOOK_EVERY, check_log_probs
from rl.engine.layers import run_prefixes
from rl.engine.memory import stage_of
from rl.engine.sampler import SamplingRequest
from rl.engine.step import DecodeStep, StepBuffers
from rl.engine.weights import SamplingWeights
from rl.prompts import sampling_prompts

# CUDA: graphs exist for a few row counts only, each half of the one before, down to the least.
_CUDA_LEAST_ROWS = 8

# CPU: finished rows leave when they are this share of the batch.
_CPU_SHARE = 0.1


class FastSampler:
    """`Sampler` on a copy of the language model's weights; see `SamplingWeights`.

    model: TokenRigForCausalLM, bare or wrapped by PEFT. dtype: that of weights, keys and values. Call
    `refresh` after each change of the model. static: row counts, buffers and steps as captured graphs need
    them; by default on CUDA only.
    """

    def __init__(self, model: Any, grammar: Grammar, dtype: torch.dtype, static: bool | None = None) -> None:
        self.grammar = grammar
        self._positions: int = model.config.max_position_embeddings
        self._weights = SamplingWeights(model, grammar.phase_slices, dtype)
        self._step = DecodeStep(self._weights, grammar)
        self._graphs = StepGraphs(self._weights.device)
        self._static = self._weights.device.type == "cuda" if static is None else static
        self._pool = BufferPool(self._weights, self._static)

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self._weights.device

    @property
    def positions(self) -> int:
        """Positions of the model."""
        return self._positions

    def refresh(self) -> None:
        """Adopt the model's current weights."""
        self._weights.refresh()

    @torch.no_grad()
    def sample(self, request: SamplingRequest) -> tuple[Tensor, Tensor]:
        """See `Sampler`. Raises MemoryError if the buffers do not fit on a CUDA device."""
        with torch.autocast(self._weights.device.type, enabled=False):
            return self._sample(request)

    def _sample(self, request: SamplingRequest) -> tuple[Tensor, Tensor]:
        limit = request.uniforms.shape[1]
        settings = DrawSettings(request.temperature, request.top_k, request.top_p)
        buffers, hidden = self._start(request)
        self._step.draw(hidden, buffers, torch.zeros_like(buffers.position), settings)
        step: Step | None = None  # looked up again when the buffers change, because that compares addresses
        for used in range(1, limit):  # own positions that hold a key after the step
            if used % LOOK_EVERY == 0:
                check_log_probs(buffers.log_probs[:, :used], request.mesh_index, request.names)
            count = self._remaining(buffers, used)
            if count == 0:
                return self._results(buffers, used, request)
            if count < len(buffers.tokens):
                buffers = self._pool.keep(buffers, self._kept(buffers, count), used - 1)
                step = None
            capacity = stage_of(used, limit - 1)
            if capacity > buffers.own_keys[0].shape[2]:
                buffers = self._pool.grow(buffers, capacity, used - 1)
                step = None
            step = step or self._prepared(buffers, settings)
            step()
        return self._results(buffers, limit, request)

    def _results(self, buffers: StepBuffers, used: int, request: SamplingRequest) -> tuple[Tensor, Tensor]:
        ids, log_probs = buffers.ids[:, :used].clone(), buffers.log_probs[:, :used].clone()
        check_log_probs(log_probs, request.mesh_index, request.names)
        return ids, log_probs

    def _start(self, request: SamplingRequest) -> tuple[StepBuffers, Tensor]:
        """Run the prefixes; buffers of all rows, and the hidden states (R, hidden) of their prompts."""
        device, vocabulary = self._weights.device, self.grammar.vocabulary
        pairs, pair_of_row = torch.unique(
            torch.stack([request.mesh_index, request.class_ids], dim=1), dim=0, return_inverse=True
        )
        order = pair_of_row.argsort(stable=True)  # rows of one prefix side by side
        pair_of_row = pair_of_row[order]
        given = [request.skeletons[mesh] for mesh in pairs[:, 0].tolist()]
        embeds = request.mesh_embeds[pairs[:, 0].to(request.mesh_embeds.device)]
        prefixes = run_prefixes(self._weights, embeds, pairs[:, 1], given, vocabulary)
        prompt, mask = sampling_prompts(pairs[:, 1].to(device), given, vocabulary)
        state = self.grammar.after_prompt(prompt, mask)
        buffers = self._pool.fill(prefixes, state, pair_of_row, order, request.uniforms, vocabulary.pad)
        return buffers, prefixes.hidden[pair_of_row.to(device)]

    def _remaining(self, buffers: StepBuffers, used: int) -> int:
        """Number of rows to go on with, finished ones included; 0 if all are finished."""
        rows = len(buffers.tokens)
        if not self._static:
            running = rows - int(self._finished(buffers).sum())
            return running if running <= rows * (1 - _CPU_SHARE) else rows
        if used % LOOK_EVERY:
            return rows
        running = rows - int(self._finished(buffers).sum())
        while running and running <= rows // 2 and rows // 2 >= _CUDA_LEAST_ROWS:
            rows //= 2
        return rows if running else 0

    def _kept(self, buffers: StepBuffers, count: int) -> Tensor:
        """The running rows, with finished ones up to `count`, in order: (count,) int64."""
        return self._finished(buffers).int().argsort(stable=True)[:count].sort().values

    def _finished(self, buffers: StepBuffers) -> Tensor:
        return self.grammar.finished(GrammarState(buffers.state, buffers.bones, buffers.skin))

    def _prepared(self, buffers: StepBuffers, settings: DrawSettings) -> Step:
        """The step on these buffers, as a captured graph on CUDA."""

        def step() -> None:
            self._step(buffers, settings)

        if not self._static:
            return step
        key = (*buffers.shape(), settings)
        fixed = [*buffers.fixed(), *self._weights.tensors()]
        return self._graphs.prepare(key, step, buffers.changing(), fixed)
