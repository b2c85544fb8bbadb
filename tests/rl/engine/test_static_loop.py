"""The loop around captured steps, run on the CPU: few row counts, buffers that stay, growth, new weights."""

from collections.abc import Hashable, Sequence

import pytest
import torch
from torch import Tensor

from policy.tokens.grammar import Grammar
from rl.engine import fast, memory
from rl.engine.capture import Step, StepGraphs, rehearse
from rl.engine.fast import FastSampler
from rl.engine.plain import PlainSampler
from rl.prompts import SkeletonTokens
from rl.rollout import row_seeds, sample_rigs
from tests.rl import tiny

CLASS = tiny.VOCABULARY.class_id("articulation")
GIVEN = [1, 2, 3, 4, 5, 6, tiny.VOCABULARY.skeleton_eos]


class Addresses(StepGraphs):
    """Rehearses and remembers addresses as on CUDA; the graph itself is replaced by the step."""

    def __init__(self) -> None:
        super().__init__("cpu")
        self.captured: list[int] = []
        self.seen: dict[Hashable, list[int]] = {}

    def prepare(self, key: Hashable, step: Step, state: Sequence[Tensor], fixed: Sequence[Tensor]) -> Step:
        addresses = [tensor.data_ptr() for tensor in (*state, *fixed) if not tensor.is_mkldnn]
        if self.seen.get(key) != addresses:
            rehearse(step, state, 2)
            self.seen[key] = addresses
            self.captured.append(len(state[1]))
        return step


@pytest.fixture
def small_stages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "FIRST_STAGE", 16)
    monkeypatch.setattr(fast, "LOOK_EVERY", 4)
    monkeypatch.setattr(fast, "_CUDA_LEAST_ROWS", 2)


@pytest.mark.usefixtures("small_stages")
def test_tokens_equal_the_plain_engine_and_graphs_serve_again() -> None:
    model, grammar = tiny.make_policy().model, Grammar(tiny.VOCABULARY)
    sampler, plain = FastSampler(model, grammar, torch.float32, static=True), PlainSampler(model, grammar)
    graphs = sampler._graphs = Addresses()
    embeds = torch.randn(4, tiny.MESH_TOKENS, 32, generator=torch.Generator().manual_seed(1))

    def compare(
        mesh_index: list[int], limit: int, seed: int, skeletons: Sequence[SkeletonTokens] | None = None
    ) -> list[int]:
        count = len(mesh_index)
        arguments = (embeds, torch.tensor(mesh_index), torch.full((count,), CLASS))
        graphs.captured.clear()
        results = [
            sample_rigs(
                engine,
                *arguments,
                max_new_tokens=limit,
                seeds=row_seeds(count, seed),
                skeletons=skeletons,
            )
            for engine in (plain, sampler)
        ]
        width = min(rollouts.completion_ids.shape[1] for rollouts in results)
        expected, found = results
        assert torch.equal(found.lengths, expected.lengths)
        assert torch.equal(found.completion_ids[:, :width], expected.completion_ids[:, :width])
        torch.testing.assert_close(
            found.log_probs[:, :width], expected.log_probs[:, :width], atol=1e-5, rtol=0
        )
        return list(graphs.captured)

    def new_weights() -> None:
        with torch.no_grad():
            for parameter in model.transformer.parameters():
                parameter.mul_(1.01)
        sampler.refresh()

    step = [0] * 9 + [3] * 3 + [1] * 9
    rows = compare(step, 160, 0)
    assert set(rows) <= {21, 10, 5, 2}
    assert len(set(rows)) > 2
    assert rows.count(21) > 1  # stages of its capacity
    new_weights()
    captures = [compare(step, 160, seed) for seed in (1, 2, 1, 2, 1, 2)]
    assert captures[0]  # storage that grew has moved
    assert captures[-2:] == [[], []]
    new_weights()
    compare(step, 160, 1)
    compare([3, 3, 2, 3], 60, 3)
    compare([0, 1, 2, 3, 0, 0], 100, 4, [(), GIVEN, (), GIVEN[:3] + GIVEN[-1:]])
    compare(step, 160, 5)
