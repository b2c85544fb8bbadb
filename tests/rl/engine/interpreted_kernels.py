"""Runs the Triton kernels on CPU tensors with Triton's interpreter; prints each case's largest error as JSON.

Run by test_kernels.py in a process of its own: the interpreter is chosen when Triton is first imported.
"""

import json
import os
import sys

os.environ["TRITON_INTERPRET"] = "1"

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

from rl.engine.kernels.decode import Plan, launch
from tests.rl.engine.attention_cases import CASES, layout, reference, tensors

PLANS = [
    Plan(prefix=1, own=1, tile=16, block=64, warps=4),
    Plan(prefix=3, own=2, tile=32, block=16, warps=4),
    Plan(prefix=2, own=5, tile=16, block=32, warps=4),
]


def multiply(builder, a, b, start, *_):  # type: ignore[no-untyped-def]
    """tl.dot with bfloat16 operands widened; the interpreter multiplies their bits as integers."""

    def numbers(handle):  # type: ignore[no-untyped-def]
        if handle.dtype.scalar != tl.bfloat16:
            return handle.data
        wide = interpreter._convert_float(handle.data, tl.bfloat16, tl.float32, None)
        return wide.view(np.float32)

    product = np.matmul(numbers(a), numbers(b), dtype=start.data.dtype)
    return interpreter.TensorHandle(product + start.data, start.dtype.scalar)


def main() -> None:
    interpreter.InterpreterBuilder.create_dot = multiply
    errors = []
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for number, case in enumerate(CASES):
            inputs, rows = tensors(case, dtype), layout(case, slots=len(case.meshes))
            for plan in PLANS if dtype == torch.float32 else PLANS[number % 3 :][:1]:
                out = launch(*inputs, rows.lengths, rows.row_of_slot, plan)
                error = (out.double() - reference(case, *inputs)).abs().max().item()
                errors.append({"dtype": str(dtype), "case": str(case), "plan": str(plan), "error": error})
    # Views with other strides, as slices of buffers for several layers have.
    case = CASES[3]
    query, *keys_and_values, position = tensors(case)
    strided = [torch.stack([t, t], dim=3)[:, :, :, 0] for t in keys_and_values]
    rows = layout(case)
    out = launch(query, *strided, position, rows.lengths, rows.row_of_slot, PLANS[1])
    error = (out.double() - reference(case, query, *strided, position)).abs().max().item()
    errors.append({"dtype": str(torch.float32), "case": "strided", "plan": str(PLANS[1]), "error": error})
    json.dump(errors, sys.stdout)


if __name__ == "__main__":
    main()
