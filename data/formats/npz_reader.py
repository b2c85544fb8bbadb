"""Reads untrusted NPZ files safely: sizes are checked before allocation, pickled code is never run."""

import math
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from data.file_content import refuse_stand_in
from data.mesh import MeshError

MAX_NPZ_BYTES = 4 * 2**30

# Exceptions that zipfile, zlib and NumPy's header parser have been observed to raise on damaged archives.
# OSError is left to the caller: it concerns the disk, not the content of the file.
_DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    SyntaxError,
    NotImplementedError,
    RuntimeError,
    MemoryError,
)


def read_npz(path: str | Path, objects: bool = False, max_bytes: int = MAX_NPZ_BYTES) -> dict[str, Any]:
    """All arrays of an NPZ file by name; no code in the file is ever run.

    Numeric, boolean and string arrays are read as NumPy does with allow_pickle=False, but each header is
    compared with the size of its archive member before memory is allocated. With `objects`, object arrays
    are read too, by `plain_pickle`; a 0-d one is returned as the object in it. `max_bytes` limits the total
    unpacked size. Raises MeshError naming the file: not an archive, truncated, too large, wrong checksum, an
    object array although `objects` is false, or an object that is not plain data. OSError if it cannot be
    opened.
    """
    path = Path(path)
    refuse_stand_in(path)
    with _damage_reported(path), zipfile.ZipFile(path) as archive:
        members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
        total = sum(member.file_size for member in members)
        if total > max_bytes:
            raise MeshError(
                f"{path}: unpacks to {total / 2**20:.0f} MiB, over the limit of {max_bytes / 2**20:.0f} MiB; "
                "split the file or raise the limit"
            )
        return {
            member.filename.removesuffix(".npy"): _read_member(path, archive, member, objects)
            for member in members
        }


def npz_names(path: str | Path) -> set[str]:
    """The names of an NPZ file's arrays, without reading them. Raises MeshError as `read_npz` does."""
    path = Path(path)
    refuse_stand_in(path)
    with _damage_reported(path), zipfile.ZipFile(path) as archive:
        return {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}


def plain_pickle(content: bytes) -> Any:
    """Load a pickle of plain data: None, numbers, strings, bytes, lists, tuples, dicts and NumPy arrays.

    Nothing is imported or called: the few names that pickled NumPy arrays refer to map to checks in this
    module, and arrays are built from their bytes with `numpy.frombuffer` (NumPy's own reader would trust
    the dtype that the pickle claims). Raises ValueError for anything else.
    """
    try:
        loaded = _PlainUnpickler(BytesIO(content)).load()
    except (
        pickle.UnpicklingError,
        EOFError,
        LookupError,
        TypeError,
        AttributeError,
        OverflowError,
        MemoryError,
        RecursionError,
    ) as problem:
        raise ValueError(str(problem) or "unexpected end") from problem
    return _to_plain(loaded, {})


@contextmanager
def _damage_reported(path: Path) -> Iterator[None]:
    try:
        yield
    except MeshError:
        raise
    except _DAMAGED as problem:
        raise MeshError(
            f"{path}: not a complete NPZ file ({problem}); copy it again or write it with numpy.savez"
        ) from problem


def _read_member(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo, objects: bool) -> Any:
    name = member.filename.removesuffix(".npy")
    with archive.open(member) as stream:
        shape, fortran, dtype = _header(stream)
        body_bytes = member.file_size - stream.tell()
        if dtype.hasobject:
            if not objects or dtype != np.dtype(object):
                raise MeshError(f"{path}: array {name!r} holds Python objects; save only numbers and strings")
            content = stream.read()
            try:
                loaded = plain_pickle(content)
            except ValueError as problem:
                raise MeshError(
                    f"{path}: array {name!r} cannot be read as plain data ({problem}); save only numbers, "
                    "strings and NumPy arrays"
                ) from problem
            return loaded.item() if isinstance(loaded, np.ndarray) and loaded.ndim == 0 else loaded
        if math.prod(shape) * dtype.itemsize != body_bytes:
            raise ValueError(f"array {name!r} of shape {shape} and dtype {dtype} has {body_bytes} bytes")
        # Read to the end, where the checksum is verified; a bytearray makes the array writable.
        values = np.frombuffer(bytearray(stream.read()), dtype=dtype)
    if fortran:
        return values.reshape(shape[::-1]).T
    return values.reshape(shape)


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    if version == (2, 0):
        return np.lib.format.read_array_header_2_0(stream)
    raise ValueError(f"an array has the unsupported format version {version}")


class _Dtype:
    """A pickled dtype: only numbers, booleans, strings, bytes and objects, no fields."""

    __slots__ = ("_code", "_order")

    def __init__(self, code: Any) -> None:
        if not isinstance(code, str) or not code[:1] or code[0] not in "biufcUSO?":
            raise pickle.UnpicklingError(f"the dtype {code!r} is not allowed")
        self._code, self._order = code, "="

    def __setstate__(self, state: Any) -> None:
        order, fields = (state[1], state[2:5]) if isinstance(state, tuple) and len(state) >= 5 else (None, ())
        if order not in ("<", ">", "|", "=") or any(field is not None for field in fields):
            raise pickle.UnpicklingError("a dtype with fields is not allowed")
        self._order = order

    @property
    def is_object(self) -> bool:
        return self._code[0] == "O"

    def real(self) -> np.dtype[Any]:
        return np.dtype(self._code).newbyteorder("=" if self._order == "|" else self._order)  # type: ignore[arg-type]


class _Array:
    """A pickled array: empty until its state is set, converted by `_to_plain`."""

    __slots__ = ("items", "shape", "values")

    def __init__(self) -> None:
        self.values: NDArray[Any] | None = None
        self.items: list[Any] | None = None
        self.shape: tuple[int, ...] = ()

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise pickle.UnpicklingError("an array's state is malformed")
        _, shape, dtype, fortran, content = state
        self.fill(content, dtype, shape, "F" if fortran else "C")

    def fill(self, content: Any, dtype: Any, shape: Any, order: str) -> None:
        if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple):
            raise pickle.UnpicklingError("an array's state is malformed")
        if not all(type(side) is int and side >= 0 for side in shape):
            raise pickle.UnpicklingError(f"an array has the shape {shape!r}")
        count = math.prod(shape)
        if dtype.is_object:
            if not isinstance(content, list) or len(content) != count or order != "C":
                raise pickle.UnpicklingError("an object array's content does not match its shape")
            self.items, self.shape = content, shape
            return
        real = dtype.real()
        if not isinstance(content, bytes | bytearray) or len(content) != count * real.itemsize:
            raise pickle.UnpicklingError("an array's content does not match its shape")
        flat = np.frombuffer(content, dtype=real)
        self.values = flat.reshape(shape[::-1]).T if order == "F" else flat.reshape(shape)


class _Call:
    """A callable that a pickle may use. It has no attributes, so a pickle cannot change what it does."""

    __slots__ = ("_function",)
    _function: Callable[..., Any]

    def __init__(self, call: Callable[..., Any]) -> None:
        object.__setattr__(self, "_function", call)

    def __call__(self, *arguments: Any) -> Any:
        return self._function(*arguments)

    def __setattr__(self, name: str, value: Any) -> None:
        raise pickle.UnpicklingError("it modifies a function")

    def __setstate__(self, state: Any) -> None:
        raise pickle.UnpicklingError("it modifies a function")


def _empty_array(*_: Any) -> _Array:
    return _Array()


def _dtype(code: Any, *_: Any) -> _Dtype:
    return _Dtype(code)


def _from_buffer(content: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    array = _Array()
    array.fill(content, dtype, shape, "F" if order == "F" else "C")
    return array


def _scalar(dtype: Any, content: Any) -> Any:
    array = _Array()
    array.fill(content, dtype, (), "C")
    assert array.values is not None or array.items is not None
    if array.values is None:
        raise pickle.UnpicklingError("a scalar object is not allowed")
    return array.values[()]


def _bytes(text: Any = "", encoding: Any = "latin1") -> bytes:
    """Protocols up to 2 store bytes as latin1 text."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("text in an encoding other than latin1 is not allowed")
    return text.encode("latin1")


def _allowed() -> dict[tuple[str, str], _Call]:
    calls: dict[tuple[str, str], _Call] = {
        ("numpy", "ndarray"): _Call(_refuse_call),
        ("numpy", "dtype"): _Call(_dtype),
        ("_codecs", "encode"): _Call(_bytes),
        # Empty bytes are pickled as a call of `bytes` without arguments.
        ("__builtin__", "bytes"): _Call(_bytes),
    }
    for package in ("numpy.core", "numpy._core"):
        calls[f"{package}.multiarray", "_reconstruct"] = _Call(_empty_array)
        calls[f"{package}.multiarray", "scalar"] = _Call(_scalar)
        calls[f"{package}.numeric", "_frombuffer"] = _Call(_from_buffer)
    return calls


def _refuse_call(*_: Any) -> Any:
    raise pickle.UnpicklingError("it calls numpy.ndarray")


class _PlainUnpickler(pickle.Unpickler):
    """Imports no module: the allowed names all map to functions in this file."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(stream)
        self._calls = _allowed()

    def find_class(self, module: str, name: str) -> Any:
        found = self._calls.get((module, name))
        if found is None:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not allowed")
        return found


def _to_plain(value: Any, seen: dict[int, Any], depth: int = 0) -> Any:
    """`value` with real arrays; each object is converted once, so shared objects cannot multiply."""
    if isinstance(value, bool | int | float | complex | str | bytes | bytearray | np.generic | None):
        return value
    if id(value) in seen:
        return seen[id(value)][1]
    if depth > 16:
        raise ValueError("its objects are nested too deeply")
    if isinstance(value, _Array):
        finished: Any = value.values
        if value.items is not None:
            finished = np.empty(len(value.items), dtype=object)
            for index, item in enumerate(value.items):
                finished[index] = _to_plain(item, seen, depth + 1)
            finished = finished.reshape(value.shape)
        if finished is None:
            raise ValueError("an array has no content")
    elif isinstance(value, list):
        finished = [_to_plain(item, seen, depth + 1) for item in value]
    elif isinstance(value, tuple):
        finished = tuple(_to_plain(item, seen, depth + 1) for item in value)
    elif isinstance(value, dict) and all(isinstance(key, str | int) for key in value):
        finished = {key: _to_plain(item, seen, depth + 1) for key, item in value.items()}
    else:
        raise ValueError(f"it contains a {type(value).__name__.strip('_')}")
    # Keep the original alive too, so that no other object can get its id.
    seen[id(value)] = (value, finished)
    return finished
