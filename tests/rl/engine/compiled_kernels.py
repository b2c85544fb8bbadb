"""Compiles the Triton kernels for GPUs that need not be there; prints registers and instructions as JSON.

Run by test_kernels.py in a process of its own. Arguments: the folder of the cache.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

os.environ["TRITON_CACHE_DIR"] = sys.argv[1]
os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rl.engine.kernels import triton_decode
from rl.engine.kernels.decode import make_plan

SIZE, HEADS, KV = 128, 16, 8  # the released model, 24 rows of a mesh
TYPES = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}
KINDS = {"lengths": "*i64", "row_of_slot": "*i64", "position": "*i64", "scale": "fp32"}
KINDS |= {"partial": "*fp32", "partial_lse": "*fp32"}


def kernels(dtype: torch.dtype) -> dict[str, tuple[dict[str, int | str], int]]:
    """Constants and warps of each kernel, as rl.engine.kernels.decode launches it."""
    plan = make_plan(
        torch.empty(24, HEADS, SIZE, dtype=dtype, device="meta"),
        torch.empty(1, KV, 514, SIZE, dtype=dtype, device="meta"),
        torch.empty(24, KV, 512, SIZE, dtype=dtype, device="meta"),
        torch.empty(1, 24, dtype=torch.int64, device="meta"),
    )
    common: dict[str, int | str] = {"REPEAT": HEADS // KV, "SIZE": SIZE, "BLOCK_D": SIZE}
    common |= {"BLOCK_N": plan.tile, "PRECISION": "ieee"}
    return {
        "prefix_kernel": ({**common, "BLOCK_M": plan.block}, plan.warps),
        "own_kernel": ({**common, "BLOCK_M": 16}, plan.warps),
        "merge_kernel": ({"SIZE": SIZE, "BLOCK_S": 8, "BLOCK_D": SIZE}, 1),
    }


def main() -> None:
    results = []
    reader = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    for capability, dtype in ((80, torch.bfloat16), (90, torch.bfloat16), (90, torch.float32)):
        kinds = {**KINDS, **dict.fromkeys(("query", "key", "value", "result"), TYPES[dtype])}
        for name, (constants, warps) in kernels(dtype).items():
            kernel = getattr(triton_decode, name)
            signature = {
                arg: "constexpr" if arg in constants else kinds.get(arg, "i32") for arg in kernel.arg_names
            }
            # Pointers and strides that are multiples of 16, as Triton finds at the launch.
            aligned = {
                (index,): [["tt.divisibility", 16]]
                for index, (arg, kind) in enumerate(signature.items())
                if kind.startswith("*") or arg.startswith("stride")
            }
            compiled = triton.compile(
                ASTSource(kernel, signature=signature, constexprs=constants, attrs=aligned),
                target=GPUTarget("cuda", capability, 32),
                options={"num_warps": warps, "num_stages": 2},
            )
            binary = Path(sys.argv[1]) / "kernel.cubin"
            binary.write_bytes(compiled.asm["cubin"])
            usage = subprocess.run([reader, "-res-usage", binary], capture_output=True, text=True, check=True)
            stack = re.search(r"STACK:(\d+)", usage.stdout)
            assert stack, usage.stdout
            ptx = compiled.asm["ptx"]
            results.append(
                {
                    "capability": capability,
                    "dtype": str(dtype),
                    "name": name,
                    "shared": compiled.metadata.shared,
                    "spilled": int(stack[1]),
                    "matrix": [word for word in ("mma.sync", "wgmma") if word in ptx],
                }
            )
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
