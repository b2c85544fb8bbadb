"""Tests of policy/layers/vector_math.py: MKL's first call is made on one thread, before anything computes."""

import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest
import torch

from tests.docs.pages import ROOT, load_program

# MKL's raw number of an Intel CPU with AVX-512, and the final one that it derives from it.
RAW, FINAL = 9, 5


@pytest.fixture(scope="module")
def first_calls() -> ModuleType:
    return load_program("first_calls")


@pytest.fixture(scope="module")
def mkl(first_calls: ModuleType) -> Any:
    try:
        return first_calls.MKLState()
    except SystemExit as reason:
        pytest.skip(str(reason))


def test_the_raw_number_selects_kernels_of_half_the_precision(first_calls: ModuleType, mkl: Any) -> None:
    """The fault itself: what a thread computes that reads the variable between its two writes."""
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("the wrong kernel needs AVX2")
    assert first_calls.FINAL[RAW] == FINAL
    x = torch.arange(10_800.0) * 0.037 - 200
    right = x.double().sin().float()
    before = mkl.final.value
    try:
        mkl.final.value = RAW
        wrong = x.sin()
    finally:
        mkl.final.value = before
    assert (wrong - right).abs().max() > 1e-5
    torch.testing.assert_close(x.sin(), right, rtol=0, atol=1e-6)


def test_one_element_makes_the_first_call_for_all_functions(first_calls: ModuleType, mkl: Any) -> None:
    from policy.layers.vector_math import initialise

    before = mkl.final.value, mkl.raw.value
    try:
        mkl.forget(RAW)
        assert mkl.final.value == -1
        initialise()
        assert mkl.final.value == FINAL  # no function writes it again
    finally:
        mkl.final.value, mkl.raw.value = before


def test_importing_the_skin_decoder_makes_the_first_call(mkl: Any) -> None:
    """In a fresh process, which knows nothing of the CPU before; the decoder actor imports this module."""
    program = (
        "from tests.docs.pages import load_program\n"
        "state = load_program('first_calls').MKLState()\nprint(state.final.value)\n"
        "import rewards.skin_decoder\nprint(state.final.value)"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=120
    )
    fresh, imported = map(int, run.stdout.split())
    assert fresh == -1
    assert imported >= 0
