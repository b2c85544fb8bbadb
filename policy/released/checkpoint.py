"""Checkpoint files: reading `.ckpt` without running code, writing `.ckpt` and safetensors atomically."""

import hashlib
import json
import os
import pickle
import re
import shutil
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

_SAFETENSORS_TYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
}

# What reading something that is no checkpoint raises, besides the unpickler's own error.
_MALFORMED = (
    RuntimeError,
    EOFError,
    KeyError,
    IndexError,
    AttributeError,
    TypeError,
    ValueError,
    AssertionError,
    struct.error,
    zipfile.BadZipFile,
)


class CheckpointError(ValueError):
    """A checkpoint file that cannot be used; the message names the file, the reason and the fix."""


@dataclass(frozen=True)
class Checkpoint:
    """A `.ckpt` file.

    Attributes:
        path: where it was read.
        tensors: state dict by normalised name: without `_orig_mod.` and one leading `model.` (specification,
            section 2); views into the mapped file.
        stored_names: normalised name to the name in the file.
        hyper_parameters: as stored, plain containers.
        other_entries: names of further top-level entries, such as optimizer states.
    """

    path: Path
    tensors: dict[str, Tensor]
    stored_names: dict[str, str]
    hyper_parameters: dict[str, Any]
    other_entries: tuple[str, ...]


def normalised_name(name: str) -> str:
    """The loader's rule: drop every `_orig_mod.`, then one leading `model.`."""
    return name.replace("_orig_mod.", "").removeprefix("model.")


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a Lightning-style `.ckpt` file, the weights mapped instead of copied.

    Only plain data and tensors are accepted: the file is unpickled with torch's restricted unpickler and a
    few harmless container types; nothing in it is called or imported. Raises CheckpointError.
    """
    source = Path(path)
    content = _load(source, mmap=True)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), Mapping):
        raise CheckpointError(f"{source}: holds no state_dict; give a checkpoint of the SkinTokens release")
    tensors: dict[str, Tensor] = {}
    stored: dict[str, str] = {}
    for name, tensor in content["state_dict"].items():
        plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not isinstance(name, str) or not plain:
            raise CheckpointError(
                f"{source}: the state_dict entry {name!r} is no plain tensor; save it again"
            )
        key = normalised_name(name)
        if key in tensors:
            raise CheckpointError(f"{source}: {stored[key]} and {name} are the same parameter; keep one")
        tensors[key], stored[key] = tensor, name
    hyper_parameters = content.get("hyper_parameters")
    if not isinstance(hyper_parameters, Mapping):
        raise CheckpointError(f"{source}: holds no hyper_parameters, so that its sizes are unknown")
    others = sorted(str(name) for name in set(content) - {"state_dict", "hyper_parameters"})
    return Checkpoint(source, tensors, stored, dict(hyper_parameters), tuple(others))


def _stand_in_path(*parts: str) -> str:
    return str(PurePath(*parts))


# Containers that training frameworks put into hyper_parameters, read as plain dictionaries and text.
_HARMLESS: list[Any] = [
    *(
        (dict, f"{module}.AttributeDict")
        for module in (
            "lightning.fabric.utilities.data",
            "lightning_fabric.utilities.data",
            "lightning.pytorch.utilities.parsing",
            "pytorch_lightning.utilities.parsing",
        )
    ),
    *((_stand_in_path, f"pathlib.{kind}Path") for kind in ("Posix", "Windows", "PurePosix", "PureWindows")),
]


def _load(source: Path, mmap: bool) -> Any:
    if not source.is_file():
        raise CheckpointError(f"{source}: no such file")
    zipped = zipfile.is_zipfile(source)
    if zipped:
        _check_archive(source)
    with torch.serialization.safe_globals(_HARMLESS):
        try:
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap and zipped)
        except pickle.UnpicklingError as error:
            wanted = re.search(r"GLOBAL (\S+)", str(error))
            if wanted is None:
                raise CheckpointError(
                    f"{source}: is no checkpoint of plain data and tensors; it was not loaded"
                ) from error
            raise CheckpointError(
                f"{source}: wants to load {wanted.group(1)}, which is neither data nor a tensor; the file "
                "was not loaded, as that could run code"
            ) from error
        except _MALFORMED as error:
            raise CheckpointError(
                f"{source}: is truncated, damaged or no torch checkpoint; fetch it again"
            ) from error


def _check_archive(source: Path) -> None:
    """Compare the checksum of everything in the archive: a damaged file must not become a policy."""
    try:
        with zipfile.ZipFile(source) as archive:
            broken = archive.testzip()
    except _MALFORMED as error:
        raise CheckpointError(f"{source}: is truncated or damaged; fetch it again") from error
    if broken is not None:
        raise CheckpointError(f"{source}: its part {broken} is damaged; fetch it again")


# ------------------------------------------------------------------ writing


@contextmanager
def atomic_file(path: str | Path) -> Iterator[IO[bytes]]:
    """A binary file that takes the name `path` only when the block succeeds."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(handle, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, target)
    finally:
        Path(name).unlink(missing_ok=True)


def write_sha256(path: str | Path) -> str:
    """Write `PATH.sha256` as `sha256sum` does, return the digest."""
    source = Path(path)
    digest = file_sha256(source)
    with atomic_file(source.with_name(source.name + ".sha256")) as file:
        file.write(f"{digest}  {source.name}\n".encode())
    return digest


def file_sha256(path: str | Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_checkpoint(
    path: str | Path, tensors: Mapping[str, Tensor], hyper_parameters: Mapping[str, Any]
) -> None:
    """Write a `.ckpt` with these stored names; tensors that share memory are stored once."""
    content = {"state_dict": dict(tensors), "hyper_parameters": dict(hyper_parameters)}
    with atomic_file(path) as file:
        torch.save(content, file)


def write_like(path: str | Path, original: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a copy of the `.ckpt` file `original` in which only weights differ.

    Everything else stays byte for byte, and so do weights that did not change: each tensor is written over
    its place in the copy, in the dtype of the original.

    Args:
        tensors: by normalised name; the names may be some of the original's, the shapes must be the same.

    Raises:
        CheckpointError: the original is no zip archive of `torch.save`, or a name or shape does not fit.
    """
    source = Path(original)
    places = _places(source)
    unknown = [name for name in tensors if name not in places]
    if unknown:
        raise CheckpointError(f"{source}: has no {', '.join(unknown)}")
    with atomic_file(path) as file:
        with source.open("rb") as template:
            shutil.copyfileobj(template, file, 1 << 24)
        for name, tensor in tensors.items():
            offset, like = places[name]
            file.seek(offset)
            file.write(_raw_bytes(tensor.to(like.dtype)).data)
        _repair_checksums(file)


def _places(source: Path) -> dict[str, tuple[int, Tensor]]:
    """Byte offset in the file and a fake tensor of each entry of a checkpoint's state dict."""
    if not zipfile.is_zipfile(source):
        raise CheckpointError(f"{source}: is truncated or in the format of old torch versions; save it again")
    with FakeTensorMode():
        state = _load(source, mmap=False)["state_dict"]
    places = {}
    for name, tensor in state.items():
        start = tensor.untyped_storage()._checkpoint_offset
        if start is None or not tensor.is_contiguous():
            raise CheckpointError(f"{source}: {name} is not stored contiguously; export without --like")
        places[normalised_name(name)] = (start + tensor.storage_offset() * tensor.element_size(), tensor)
    return places


def _repair_checksums(file: IO[bytes]) -> None:
    """Recompute the CRC-32 of every entry of a zip archive whose stored contents were changed in place."""
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        position = archive.start_dir
    for entry in entries:
        file.seek(position)
        central = file.read(46)
        if central[:4] != b"PK\x01\x02" or entry.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError("the archive was not written by torch.save; export without --like")
        lengths = struct.unpack("<3H", central[28:34])
        file.seek(entry.header_offset)
        local = file.read(30)
        data = entry.header_offset + 30 + sum(struct.unpack("<2H", local[26:30]))
        crc = _crc32(file, data, entry.file_size)
        if crc != entry.CRC:
            packed = struct.pack("<I", crc)
            _overwrite(file, position + 16, packed)
            if local[14:18] == struct.pack("<I", entry.CRC):
                _overwrite(file, entry.header_offset + 14, packed)
            if entry.flag_bits & 8:  # a data descriptor follows the contents
                file.seek(data + entry.file_size)
                if file.read(4) == b"PK\x07\x08":
                    _overwrite(file, data + entry.file_size + 4, packed)
        position += 46 + sum(lengths)


def _overwrite(file: IO[bytes], position: int, content: bytes) -> None:
    file.seek(position)
    file.write(content)


def _crc32(file: IO[bytes], position: int, size: int) -> int:
    file.seek(position)
    crc = 0
    while size > 0:
        block = file.read(min(size, 1 << 22))
        crc, size = zlib.crc32(block, crc), size - len(block)
    return crc


def _raw_bytes(tensor: Tensor) -> npt.NDArray[np.uint8]:
    """A tensor's memory, not copied if it is contiguous."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file tensor by tensor: unlike the library's writer, without a copy of them all."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _SAFETENSORS_TYPES:
            raise CheckpointError(f"{name} has the dtype {tensor.dtype}, which is not supported")
        end = offset + tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _SAFETENSORS_TYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with atomic_file(path) as file:
        file.write(struct.pack("<Q", len(text)))
        file.write(text)
        for tensor in tensors.values():
            file.write(_raw_bytes(tensor).data)


def read_safetensors(paths: Iterable[Path]) -> dict[str, Tensor]:
    """Tensors of one model in one or several files, without `_orig_mod.`; views into the mapped files."""
    tensors: dict[str, Tensor] = {}
    for path in paths:
        try:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dictionary
                    tensors[name.replace("_orig_mod.", "")] = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path}: is truncated, damaged or no safetensors file ({error})"
            ) from error
    return tensors
