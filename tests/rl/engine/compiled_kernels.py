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

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from rl.engine.kernels import triton_decode

SIZE = 128
HALF = {"key": "*bf16", "value": "*bf16", "query": "*bf16", "result": "*bf16"}
WHOLE = {"lengths": "*i64", "row_of_slot": "*i64", "position": "*i64"}
KINDS = {**HALF, **WHOLE, "partial": "*fp32", "partial_lse": "*fp32", "scale": "fp32"}
COMMON = {"REPEAT": 2, "SIZE": SIZE, "BLOCK_N": 64, "BLOCK_D": SIZE, "PRECISION": "ieee"}
KERNELS = {  # constants and warps, as rl.engine.kernels.decode launches them at the released size
    "prefix_kernel": ({**COMMON, "BLOCK_M": 64}, 4),
    "own_kernel": ({**COMMON, "BLOCK_M": 16}, 4),
    "merge_kernel": ({"SIZE": SIZE, "BLOCK_S": 8, "BLOCK_D": SIZE}, 1),
}


def main() -> None:
    results = []
    reader = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    for capability in (80, 90):
        for name, (constants, warps) in KERNELS.items():
            kernel = getattr(triton_decode, name)
            signature = {
                arg: "constexpr" if arg in constants else KINDS.get(arg, "i32") for arg in kernel.arg_names
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
                    "name": name,
                    "shared": compiled.metadata.shared,
                    "spilled": int(stack[1]),
                    "matrix": [word for word in ("mma.sync", "wgmma") if word in ptx],
                }
            )
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
