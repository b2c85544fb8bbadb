"""On a GPU: the kernels equal the reference, a replayed graph follows the position, compiled halves agree."""

import pytest
import torch
from torch import Tensor

from policy.tokenrig.log_probs import row_uniforms
from policy.tokens.grammar import Grammar
from rl.engine.capture import StepGraphs, fused
from rl.engine.decode_attention import PrefixRows, decode_attention
from rl.engine.fast import FastSampler
from rl.engine.kernels.decode import Plan, launch
from rl.engine.sampler import SamplingRequest
from rl.engine.self_check import LIMITS, compare, model_scorer
from tests.rl import tiny
from tests.rl.engine.attention_cases import CASES, Case, reference, tensors

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

RELEASED = Case((0,) * 24 + (1,) * 7 + (2,) * 24, (514, 530, 514), 530, 300, 512, 8, 2, 128)
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}


def on_gpu(case: Case, dtype: torch.dtype) -> tuple[tuple[Tensor, ...], PrefixRows]:
    rows = PrefixRows.of(torch.tensor(case.meshes), torch.tensor(case.lengths).cuda(), case.positions)
    return tuple(t.cuda() for t in tensors(case, dtype)), rows


@pytest.mark.parametrize("case", [*CASES, RELEASED], ids=str)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_kernels_equal_the_reference(case: Case, dtype: torch.dtype) -> None:
    inputs, rows = on_gpu(case, dtype)
    expected = reference(case, *tensors(case, dtype))
    out = decode_attention(*inputs, rows)
    assert out.dtype == dtype
    torch.testing.assert_close(out.double().cpu(), expected, atol=TOLERANCE[dtype], rtol=0)
    for plan in (Plan(1, 1, 16, 16, 4), Plan(5, 3, 32, 32, 4)):
        out = launch(*inputs, rows.lengths, rows.row_of_slot, plan)
        torch.testing.assert_close(out.double().cpu(), expected, atol=TOLERANCE[dtype], rtol=0)


def test_a_replayed_graph_follows_the_position_and_the_layout() -> None:
    case = RELEASED
    (query, prefix_key, prefix_value, own_key, own_value, position), rows = on_gpu(case, torch.float32)
    own_key.normal_()
    own_value.normal_()
    out = torch.empty_like(query)

    def step() -> None:
        out.copy_(decode_attention(query, prefix_key, prefix_value, own_key, own_value, position, rows))
        position.add_(1)

    fixed = [query, prefix_key, prefix_value, own_key, own_value]
    position.zero_()
    graphs = StepGraphs("cuda")
    replay = graphs.prepare("a", step, [position, out], fixed)
    assert position.item() == 0
    for expected_position in range(400):
        query.normal_()
        replay()
        if expected_position in (0, 1, 63, 64, 399):
            assert position.item() == expected_position + 1
            before = torch.full_like(position, expected_position)
            eager = decode_attention(query, prefix_key, prefix_value, own_key, own_value, before, rows)
            torch.testing.assert_close(out, eager)

    other = PrefixRows.of(torch.tensor(case.meshes[::-1]), torch.tensor([500, 7, 530]).cuda(), case.positions)
    rows.copy_(other)
    again = graphs.prepare("a", step, [position, out], fixed)
    again()
    before = position - 1
    eager = decode_attention(query, prefix_key, prefix_value, own_key, own_value, before, other)
    torch.testing.assert_close(out, eager)


def test_graphs_of_two_shapes_share_a_pool_and_stay_right() -> None:
    graphs = StepGraphs("cuda")
    states, replays = [], []
    for rows in (5, 3):
        state = torch.ones(rows, 64, device="cuda")

        def step(state: Tensor = state) -> None:
            state.copy_((state @ state.new_ones(64, 64) / 64).relu() + 1)

        states.append(state)
        replays.append(graphs.prepare(rows, step, [state], []))
    for _ in range(3):
        for replay in replays:
            replay()
    for state in states:
        torch.testing.assert_close(state, torch.full_like(state, 4))


def test_compiled_halves_equal_themselves() -> None:
    def half(x: Tensor, weight: Tensor, buffer: Tensor, position: Tensor) -> Tensor:
        x = torch.nn.functional.rms_norm(x, (64,)) @ weight
        buffer.index_copy_(1, position, x[:, None])
        return torch.nn.functional.silu(x)

    function = fused(half, "cuda", (0, 2))
    for rows in (24, 7, 5):
        x, weight = torch.randn(rows, 64, device="cuda"), torch.randn(64, 64, device="cuda")
        position = torch.tensor([2], device="cuda")
        buffers = torch.zeros(2, rows, 4, 64, device="cuda")
        out = function(x, weight, buffers[0], position)
        torch.testing.assert_close(out, half(x, weight, buffers[1], position), atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(buffers[0], buffers[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_engine_agrees_with_the_model(dtype: torch.dtype) -> None:
    model, grammar = tiny.make_policy().model.cuda(), Grammar(tiny.VOCABULARY)
    sampler = FastSampler(model, grammar, dtype)
    generator = torch.Generator().manual_seed(1)
    request = SamplingRequest(
        mesh_embeds=torch.randn(3, tiny.MESH_TOKENS, 32, generator=generator).cuda(),
        mesh_index=torch.tensor([0] * 9 + [2] * 9 + [1] * 3),
        class_ids=torch.full((21,), tiny.VOCABULARY.class_id("articulation")),
        skeletons=[(), (), ()],
        uniforms=row_uniforms(range(21), 100),
    )
    score = model_scorer(model, grammar)
    assert compare(sampler, score, request).within(LIMITS[dtype])
    for _ in range(2):  # the second time, graphs serve again
        ids, log_probs = sampler.sample(request)
        difference = (score(request, ids) - log_probs).abs()
        assert difference.mean() <= LIMITS[dtype].mean
        assert difference.max() <= LIMITS[dtype].worst
