"""`python docs/first_calls.py`: counts fresh processes whose first multi-threaded call of torch is wrong.

MKL's vector functions (sin, exp, log, tanh, …) choose their kernel from one variable, set without a lock when
the process first calls any of them: first to the CPU's raw number, then to its final one. Where those differ,
as on Intel CPUs with AVX-512 (9, then 5), a second thread that reads in between takes a kernel of lower
accuracy or of another CPU. `policy/layers/vector_math.py` makes that first call on one thread.

Each process is forked from one that imported torch but never computed. That process's memory of MKL is reset
before each fork, so it may load a policy. On CPUs whose two numbers are equal (AMD) nothing can go wrong;
`--cpu 9` lets MKL believe in an Intel CPU with AVX-512, on any CPU that has AVX-512.

    python docs/first_calls.py --cpu 9                     each function without and with the first call made
    python docs/first_calls.py --cpu 9 --policy checkpoints/small      the policy's mesh condition instead
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import os
import platform
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

# The point embedding of 300 points at 12 frequencies and 3 axes, as the small policy has it.
ELEMENTS = 10_800
# MKL's raw numbers of CPUs and the final ones that it derives from them.
FINAL = (0, 1, 0, 0, 0, 2, 2, 3, 4, 5)

FUNCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sin": torch.sin,
    "cos": torch.cos,
    "tan": torch.tan,
    "tanh": torch.tanh,
    "exp": lambda x: torch.exp(x / 100),
    "log": lambda x: torch.log(x.abs() + 0.1),
    "log1p": lambda x: torch.log1p(x.abs()),
    "log2": lambda x: torch.log2(x.abs() + 0.1),
    "log10": lambda x: torch.log10(x.abs() + 0.1),
    "sqrt": lambda x: torch.sqrt(x.abs()),
    "rsqrt": lambda x: torch.rsqrt(x.abs() + 0.1),
    "atan": torch.atan,
    "asin": lambda x: torch.asin(x / 250),
    "acos": lambda x: torch.acos(x / 250),
    "erf": lambda x: torch.erf(x / 100),
    "erfc": lambda x: torch.erfc(x / 100),
    "erfinv": lambda x: torch.erfinv(x / 250),
    "expm1": lambda x: torch.expm1(x / 100),
    "exp2": lambda x: torch.exp2(x / 100),
    "pow": lambda x: torch.pow(x.abs(), 1.7),
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "gelu (tanh)": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "softplus": F.softplus,
    "softmax": lambda x: x.view(-1, 36).softmax(-1),
    "log_softmax": lambda x: x.view(-1, 36).log_softmax(-1),
    "logsumexp": lambda x: x.view(-1, 36).logsumexp(-1),
    "layer_norm": lambda x: F.layer_norm(x.view(-1, 36), (36,)),
    "matmul": lambda x: x.view(-1, 36) @ x.view(-1, 36).T,
    "norm": lambda x: x.view(-1, 36).norm(dim=-1),
    "cumsum": lambda x: x.view(-1, 36).cumsum(-1),
    "exponential_": lambda x: seeded(x).exponential_(),
    "normal_": lambda x: seeded(x).normal_(),
    "multinomial": lambda x: (torch.manual_seed(0), x.view(-1, 36).softmax(-1).multinomial(1))[1],
}


def seeded(x: Tensor) -> Tensor:
    """An empty tensor like `x`, with torch's generator seeded."""
    torch.manual_seed(0)
    return torch.empty_like(x)


class MKLState:
    """MKL's two variables in this process: the CPU's raw number and the final one; both -1 before first use.

    Raises:
        SystemExit: torch has no MKL, or one whose code is laid out otherwise than in MKL 2024.2.
    """

    def __init__(self) -> None:
        try:
            library = ctypes.CDLL(str(Path(torch.__path__[0]) / "lib" / "libtorch_cpu.so"))
            self.final = self._variable(library, "mkl_vml_serv_cpu_detect", b"\x8b\x05", 6)
            self.raw = self._variable(library, "mkl_serv_vml_cpu_detect", b"\x83\x3d", 7)
        except (OSError, AttributeError) as error:
            raise SystemExit(f"error: this torch has no MKL as the script knows it ({error})") from error

    @staticmethod
    def _variable(library: ctypes.CDLL, function: str, opcode: bytes, length: int) -> ctypes.c_int:
        """The variable that the first instruction of `function` reads, at an offset from its end."""
        start = ctypes.cast(getattr(library, function), ctypes.c_void_p).value
        assert start is not None
        code = ctypes.string_at(start, 6)
        if code[:2] != opcode:
            raise SystemExit(f"error: {function} of this torch's MKL begins otherwise than in MKL 2024.2")
        return ctypes.c_int.from_address(start + length + int.from_bytes(code[2:], "little", signed=True))

    def forget(self, cpu: int) -> None:
        """As in a fresh process; with `cpu` 0 to 9, on a CPU of that raw number."""
        self.final.value, self.raw.value = -1, cpu


def in_fork(job: Callable[[], str]) -> str:
    """The text that `job` returns in a forked process; the signal's number if one ended it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        os.write(writer, job().encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    status = os.waitpid(child, 0)[1]
    return f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else text


def first_call(function: Callable[[Tensor], Tensor], state: MKLState, cpu: int, initialise: bool) -> str:
    """In a fresh process: `right`, `off by …` or `never`, if the function does not use MKL's."""
    state.forget(cpu)
    torch.set_num_threads(2)
    x = (torch.arange(ELEMENTS, dtype=torch.float32) * 0.37) % 400 - 200
    if initialise:
        initialise_vector_math()
    first = function(x)
    used = state.final.value != -1
    state.final.value = FINAL[state.raw.value] if used else -1
    second = function(x)
    if not used:
        return "never" if torch.equal(first, second) else "differs without MKL"
    return "right" if torch.equal(first, second) else f"off by {float((first - second).abs().max()):.1e}"


def initialise_vector_math() -> None:
    """The project's own first call."""
    from policy.layers.vector_math import initialise

    initialise()


def report_functions(state: MKLState, options: argparse.Namespace) -> int:
    """Print a line per function; return 1 if a first call was wrong although MKL had been initialised."""
    failed = False
    print(f"{options.processes} fresh processes each, two threads, {ELEMENTS:,} elements")
    print(f"{'function':14}{'wrong first calls':>22}{'initialised on one thread':>28}  errors")
    for name in options.functions or FUNCTIONS:
        counts = []
        errors: Counter[str] = Counter()
        for initialise in (False, True):
            outcomes = Counter(
                in_fork(lambda: first_call(FUNCTIONS[name], state, options.cpu, initialise))  # noqa: B023
                for _ in range(options.processes)
            )
            right = outcomes.pop("right", 0) + outcomes.pop("never", 0)
            counts.append(options.processes - right)
            errors.update(outcomes)
            failed |= initialise and right < options.processes
        uses = in_fork(lambda: first_call(FUNCTIONS[name], state, -1, False)) != "never"  # noqa: B023
        text = ", ".join(f"{count} x {what}" for what, count in errors.most_common(3))
        note = "" if uses else "(does not use MKL)"
        print(f"{name:14}{counts[0]:>22}{counts[1]:>28}  {text}{note}", flush=True)
    return int(failed)


def report_policy(state: MKLState, options: argparse.Namespace) -> int:
    """Print the mesh conditions that the processes computed; return 1 if initialised ones differ."""
    from data.creatures import make_creature
    from data.sampling import sample_surface
    from policy import load

    torch.set_num_threads(1)
    policy = load(options.policy)
    mesh = make_creature(7).mesh
    surface = sample_surface(mesh.vertices, mesh.faces, 2048, np.random.default_rng(7))
    points, normals = (torch.from_numpy(part)[None] for part in surface)

    def condition(initialise: bool) -> str:
        state.forget(options.cpu)
        torch.set_num_threads(2)
        if initialise:
            initialise_vector_math()
        with torch.no_grad():
            embeds = policy.model.encode_mesh(points, normals)
        return hashlib.sha256(embeds.numpy().tobytes()).hexdigest()[:16]

    different = 0
    for initialise in (False, True):
        hashes = Counter(in_fork(lambda: condition(initialise)) for _ in range(options.processes))  # noqa: B023
        different = len(hashes)
        print(f"{'initialised on one thread' if initialise else 'not initialised'}: {dict(hashes)}")
    return int(different > 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if a process differs although MKL had been initialised."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("functions", nargs="*", metavar="FUNCTION", help=f"of {', '.join(FUNCTIONS)}")
    parser.add_argument("--processes", type=int, default=200, help="per function (200)")
    parser.add_argument("--cpu", type=int, default=-1, choices=range(10), help="MKL's raw number of a CPU")
    parser.add_argument("--policy", metavar="DIR", help="hash the mesh condition of this policy instead")
    options = parser.parse_args(argv)
    unknown = set(options.functions) - set(FUNCTIONS)
    if unknown:
        parser.error(f"unknown function {sorted(unknown)[0]!r}; use one of {', '.join(FUNCTIONS)}")
    if sys.platform != "linux" or platform.machine() != "x86_64":
        parser.error("MKL is used on x86-64 alone, and processes are forked: run this on Linux on such a CPU")
    state = MKLState()
    return report_policy(state, options) if options.policy else report_functions(state, options)


if __name__ == "__main__":
    sys.exit(main())
