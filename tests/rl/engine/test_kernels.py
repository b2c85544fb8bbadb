"""The Triton kernels without a GPU: interpreted on CPU tensors, and compiled for GPUs of two generations."""

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from rl.engine.decode_attention import PrefixRows, decode_attention
from rl.engine.kernels.decode import Plan, make_plan

ROOT = Path(__file__).resolve().parents[3]
TOLERANCE = {"torch.float32": 1e-6, "torch.bfloat16": 3e-2, "torch.float16": 2e-3}

needs_triton = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"),
    reason="Triton has no wheel for this system",
)


def results_of(module: str, *arguments: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-W", "ignore", "-m", f"tests.rl.engine.{module}", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@needs_triton
def test_interpreted_kernels_equal_the_reference() -> None:
    results = results_of("interpreted_kernels")
    assert {r["dtype"] for r in results} == set(TOLERANCE)
    assert [r for r in results if not r["error"] <= TOLERANCE[r["dtype"]]] == []


@needs_triton
def test_kernels_compile_for_gpus_and_fit_their_registers(tmp_path: Path) -> None:
    results = results_of("compiled_kernels", str(tmp_path))
    assert len(results) == 6
    for result in results:
        assert result["spilled"] <= 64, result  # bytes a thread; a block that is too large spills thousands
        assert result["shared"] <= 100 * 1024, result
    matrix = {(r["name"], r["capability"]): r["matrix"] for r in results}
    assert matrix["prefix_kernel", 80] == matrix["own_kernel", 80] == ["mma.sync"]
    assert matrix["prefix_kernel", 90] == ["wgmma"]


def on_cuda(meshes: int, slots: int, kv_heads: int, dtype: torch.dtype) -> tuple[Any, ...]:
    rows = meshes * slots
    whole = {"dtype": torch.int64, "device": "cuda"}
    layout = PrefixRows(
        lengths=torch.empty(meshes, **whole),
        slot_of_row=torch.empty(rows, **whole),
        row_of_slot=torch.empty(meshes, slots, **whole),
        in_order=False,
        hidden=None,
    )
    query = torch.empty(rows, 2 * kv_heads, 128, dtype=dtype, device="cuda")
    prefix = torch.empty(meshes, kv_heads, 514, 128, dtype=dtype, device="cuda")
    own = torch.empty(rows, kv_heads, 512, 128, dtype=dtype, device="cuda")
    return query, prefix, prefix, own, own, torch.empty(1, **whole), layout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_shape_and_dtype_on_a_cuda_device_that_is_not_there(dtype: torch.dtype) -> None:
    with FakeTensorMode():
        inputs = on_cuda(3, 5, 8, dtype)
        out = decode_attention(*inputs)
    assert out.shape == inputs[0].shape
    assert (out.dtype, out.device.type) == (dtype, "cuda")


@pytest.mark.parametrize(
    ("meshes", "slots", "dtype", "plan"),
    [
        (8, 24, torch.bfloat16, Plan(prefix=4, own=1, tile=64, block=64, warps=4)),
        (1, 24, torch.bfloat16, Plan(prefix=9, own=1, tile=64, block=64, warps=4)),
        (1, 1, torch.bfloat16, Plan(prefix=9, own=8, tile=64, block=16, warps=4)),
        (1, 24, torch.float32, Plan(prefix=11, own=1, tile=32, block=16, warps=8)),
    ],
)
def test_few_rows_are_split_more(
    meshes: int, slots: int, dtype: torch.dtype, plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    class H100:
        multi_processor_count = 132

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: H100)
    with FakeTensorMode():
        query, prefix, _, own, _, _, layout = on_cuda(meshes, slots, 8, dtype)
        assert make_plan(query, prefix, own, layout.row_of_slot) == plan
