"""Captured steps without CUDA: the function itself runs, rehearsals leave no trace, few compilations."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from rl.engine.capture import StepGraphs, fused, rehearse


class Counter:
    def __init__(self) -> None:
        self.position = torch.zeros(1, dtype=torch.int64)
        self.sums = torch.zeros(3)
        self.calls = 0

    def step(self) -> None:
        self.sums += self.position
        self.position += 1
        self.calls += 1


def test_without_cuda_the_step_itself_runs() -> None:
    counter = Counter()
    step = StepGraphs("cpu").prepare((3, 8), counter.step, [counter.position, counter.sums], [])
    assert counter.calls == 0
    for _ in range(4):
        step()
    assert counter.position.item() == 4
    assert counter.sums.tolist() == [6, 6, 6]


def test_rehearsals_start_from_the_same_state_and_leave_it() -> None:
    counter = Counter()
    counter.position += 7
    seen: list[int] = []

    def step() -> None:
        seen.append(int(counter.position))
        counter.step()

    address = counter.position.data_ptr()
    rehearse(step, [counter.position, counter.sums], 3)
    assert seen == [7, 7, 7]
    assert counter.position.item() == 7
    assert counter.sums.tolist() == [0, 0, 0]
    assert counter.position.data_ptr() == address


class FakeGraphs(StepGraphs):
    """Counts captures on a machine without CUDA."""

    def __init__(self) -> None:
        super().__init__("cuda")
        self.captures = 0

    def _capture(self, step, state):  # type: ignore[no-untyped-def]
        self.captures += 1

        class Graph:
            replay = staticmethod(step)

        return Graph


def test_graphs_are_cached_while_tensors_stay_where_they_are() -> None:
    graphs, counter = FakeGraphs(), Counter()
    weights, state = torch.zeros(2), [counter.position, counter.sums]
    first = graphs.prepare((3, 8), counter.step, state, [weights])
    weights += 1  # refreshed in place
    assert graphs.prepare((3, 8), counter.step, state, [weights]) is first
    assert graphs.captures == 1
    graphs.prepare((2, 8), counter.step, state, [weights])
    assert graphs.captures == 2
    graphs.prepare((3, 8), counter.step, state, [weights.clone()])
    assert graphs.captures == 3
    graphs.clear()
    graphs.prepare((2, 8), counter.step, state, [weights])
    assert graphs.captures == 4


@pytest.fixture
def compilations() -> Iterator[list[int]]:
    torch._dynamo.reset()
    counted: list[int] = []
    yield counted
    torch._dynamo.reset()


def test_one_compilation_serves_all_layers_and_row_counts(
    monkeypatch: pytest.MonkeyPatch, compilations: list[int]
) -> None:
    compile_with = torch.compile

    def backend(module: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        compilations.append(1)
        return module.forward

    monkeypatch.setattr(torch, "compile", lambda f, **options: compile_with(f, backend=backend, **options))

    def half(x: Tensor, weight: Tensor, buffer: Tensor, position: Tensor) -> Tensor:
        x = torch.nn.functional.rms_norm(x, (8,)) @ weight
        buffer.index_copy_(1, position, x[:, None])
        return x.reshape(len(x), 2, 4)

    function = fused(half, "cuda", (0, 2))
    position = torch.tensor([3])
    for capacity in (4, 8, 16):
        for rows in (12, 9, 6, 5, 3, 2):
            for _ in range(3):  # layers
                x, weight, buffer = torch.randn(rows, 8), torch.randn(8, 8), torch.zeros(rows, capacity, 8)
                out = function(x, weight, buffer, position)
                assert torch.equal(buffer[:, 3].view_as(out), out)
        assert len(compilations) == (1 if capacity == 4 else 2)


def test_without_cuda_nothing_is_compiled() -> None:
    assert fused(torch.nn.functional.silu, "cpu", (0,)) is torch.nn.functional.silu
