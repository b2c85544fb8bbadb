"""Compiles numba kernels: machine code is cached on disk, and one process of a machine compiles it."""

import fcntl
import hashlib
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numba
import numpy as np
from llvmlite import binding
from numba.core.dispatcher import Dispatcher
from numpy.typing import NDArray

T = TypeVar("T", bound=np.generic)


def kernel(**options: Any) -> Any:
    """Decorator of a kernel: `numba.njit` with its machine code cached on disk.

    The cache lies in NUMBA_CACHE_DIR or, without it, in the first of these that can be written: the user's
    cache folder ($XDG_CACHE_HOME or ~/.cache), the virtual environment, a folder of the user's own under the
    system's temporary directory. It never lies beside the source: checkouts may be read-only or shared.
    """
    return numba.njit(cache=True, **options)


def read_only(array: NDArray[T]) -> NDArray[T]:
    """A view that cannot be written to, for a kernel's inputs.

    numba compiles a kernel once for writable arrays and once more for read-only ones, such as all arrays from
    Ray's object store. With read-only inputs everywhere there is one version.
    """
    view = array.view()
    view.flags.writeable = False
    return view


def compile_once(kernels: Sequence[Any], use: Callable[[], object], variant: str = "") -> None:
    """Call `use`; if that may compile `kernels`, only one process of this machine does, and the others wait.

    Workers that start together would otherwise all compile the same kernels, and overwrite each other's
    entries in the cache. A file in the cache folder records that they are compiled, for this source, numba
    and CPU.

    Args:
        kernels: all kernels that `use` calls and that take noticeable time to compile.
        use: calls them, with the types of arguments that they will have later.
        variant: which of several choices `use` makes, if it does not always call all kernels.
    """
    cached = [each for each in kernels if isinstance(each, Dispatcher) and each.stats.cache_path]
    if not cached:  # numba or its cache is switched off
        use()
        return
    folder = Path(str(cached[0].stats.cache_path))
    done = folder / f"compiled-{_digest(cached, variant)}"
    if done.exists():
        use()
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "compiling.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        use()
        done.touch()


def _digest(kernels: Sequence[Dispatcher], variant: str) -> str:
    """Of everything that decides whether numba finds machine code in its cache."""
    cpu = (numba.config.CPU_NAME, binding.get_host_cpu_name(), binding.get_host_cpu_features().flatten())
    digest = hashlib.blake2b(f"{numba.__version__}/{cpu}/{variant}".encode(), digest_size=8)
    for path in sorted({each.py_func.__code__.co_filename for each in kernels}):
        status = os.stat(path)
        digest.update(f"/{path}/{status.st_mtime_ns}/{status.st_size}".encode())
    return digest.hexdigest()


def _choose_folder() -> None:
    """Set numba's cache folder, unless NUMBA_CACHE_DIR did."""
    if numba.config.CACHE_DIR:
        return
    caches = [os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")]
    if sys.prefix != sys.base_prefix:
        caches.append(f"{sys.prefix}/.cache")
    for folder in (Path(cache) / "tokenrig-rl" / "numba" for cache in caches):
        # Without a home directory, `~` stays as it is.
        if folder.is_absolute() and _can_write(folder):
            numba.config.CACHE_DIR = str(folder)
            return
    folder = Path(tempfile.gettempdir()) / f"tokenrig-rl-numba-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.stat()
    # Cached machine code is executed: it must not come from another user.
    if status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise RuntimeError(
            f"{folder} can be written by other users; set NUMBA_CACHE_DIR to a folder of your own"
        )
    numba.config.CACHE_DIR = str(folder)


def _can_write(folder: Path) -> bool:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:  # read-only, another user's, or full
        return False


_choose_folder()
