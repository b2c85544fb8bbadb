"""Replays an in-place step function as one CUDA graph; without CUDA the function itself runs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor

Step = Callable[[], None]

# Runs before the capture: the first compiles kernels and allocates workspaces, the second runs as the replay.
_REHEARSALS = 2


@dataclass(frozen=True, eq=False)
class _Captured:
    graph: Any  # torch.cuda.CUDAGraph
    addresses: tuple[int, ...]


class StepGraphs:
    """CUDA graphs of step functions, one per shape, in one memory pool.

    A step reads and writes fixed tensors only, allocates what it likes, returns nothing and copies nothing to
    the host. Its launches are recorded once and replayed per token, which saves the time that Python and the
    driver need for some 500 launches.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.device = torch.device(device)
        self._graphs: dict[Hashable, _Captured] = {}
        self._pool: Any = None

    def prepare(self, key: Hashable, step: Step, state: Sequence[Tensor], fixed: Sequence[Tensor]) -> Step:
        """A function that does what `step` does, to be called once per token.

        The graph that was captured under `key` serves again while all tensors stay where they were; otherwise
        it is captured anew. Capturing runs `step` and undoes its changes to `state`.

        Args:
            key: what determines the shapes, such as (rows, capacity).
            step: the step function.
            state: the tensors whose values the step reads and changes, such as the position, the tokens and
                the outputs. Buffers that the step writes at `position` before it reads them, such as keys and
                values, need no copy.
            fixed: all other tensors that the step reads or writes: weights, keys and values, tables.
        """
        if self.device.type != "cuda":
            return step
        addresses = tuple(tensor.data_ptr() for tensor in (*state, *fixed))
        captured = self._graphs.get(key)
        if captured is None or captured.addresses != addresses:
            self._graphs.pop(key, None)  # its memory returns to the pool before the new capture
            captured = _Captured(self._capture(step, state), addresses)
            self._graphs[key] = captured
        replay: Step = captured.graph.replay
        return replay

    def clear(self) -> None:
        """Drop all graphs and their memory, such as when the buffers have been allocated anew."""
        self._graphs.clear()
        self._pool = None

    def _capture(self, step: Step, state: Sequence[Tensor]) -> Any:
        with torch.cuda.device(self.device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                rehearse(step, state, _REHEARSALS)
            torch.cuda.current_stream().wait_stream(side)
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            # thread_local: another thread, such as the decoder's, may allocate while this one captures.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                step()
            return graph


def rehearse(step: Step, state: Sequence[Tensor], times: int) -> None:
    """Run a step several times from the same state, and leave that state as it was."""
    saved = [tensor.clone() for tensor in state]
    for _ in range(times):
        step()
        for tensor, value in zip(state, saved, strict=True):
            tensor.copy_(value)


def fused(
    function: Callable[..., Any], device: torch.device | str, batched: Sequence[int]
) -> Callable[..., Any]:
    """`function` compiled by torch.compile on CUDA, itself elsewhere.

    Meant for the pure halves of a layer around attention: called with each layer's weights as arguments, one
    compilation serves all layers and all numbers of rows but 1, which has its own. A graph break or
    too many recompilations raise an error instead of running the rest uncompiled.

    batched: the positional arguments whose first dimension is the number of rows.
    """
    if torch.device(device).type != "cuda":
        return function
    compiled = torch.compile(function, fullgraph=True)

    @wraps(function)
    def run(*arguments: Any) -> Any:
        for index in batched:
            torch._dynamo.maybe_mark_dynamic(arguments[index], 0)
        return compiled(*arguments)

    return run
