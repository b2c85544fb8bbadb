"""Checkpoint files: reads a released `.ckpt` without running its code, writes `.ckpt` and safetensors."""

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
from torch.torch_version import TorchVersion

from data.file_content import stand_in_at

_SAFETENSORS_TYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float64: "F64",
    torch.int64: "I64",
    torch.int32: "I32",
}

# Before this version a file could corrupt memory in torch's restricted unpickler (weights_only=True).
_SAFE_TORCH = "2.10"

# Raised by zipfile and torch.load on a file that is not a checkpoint, besides pickle.UnpicklingError.
_CORRUPT_FILE_ERRORS = (
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
    """A parsed `.ckpt` file.

    Attributes:
        path: the file.
        tensors: state dict by normalised name (see `normalised_name`); views into the mapped file.
        hyper_parameters: as stored, plain containers.
        other_entries: names of further top-level entries, such as optimizer states.
    """

    path: Path
    tensors: dict[str, Tensor]
    hyper_parameters: dict[str, Any]
    other_entries: tuple[str, ...]


def normalised_name(name: str) -> str:
    """A parameter's name without any `_orig_mod.` and one leading `model.` (specification, section 2)."""
    return name.replace("_orig_mod.", "").removeprefix("model.")


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a Lightning-style `.ckpt` file with memory-mapped weights.

    Only plain data and tensors are accepted: torch's restricted unpickler (`weights_only=True`) reads the
    file, with an allow-list of a few container types; nothing in it is called or imported. Raises
    CheckpointError for a missing, truncated, damaged or unsafe file, for one without state_dict or
    hyper_parameters, and with a torch older than 2.10, whose restricted unpickler has a flaw.
    """
    source = Path(path)
    content = _load(source, mmap=True)
    if not isinstance(content, dict) or not isinstance(content.get("state_dict"), Mapping):
        raise CheckpointError(f"{source}: no state_dict; pass a checkpoint of the SkinTokens release")
    tensors: dict[str, Tensor] = {}
    stored_names: dict[str, str] = {}
    for name, tensor in content["state_dict"].items():
        plain = isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.device.type == "cpu"
        if not isinstance(name, str) or not plain:
            raise CheckpointError(
                f"{source}: the state_dict entry {name!r} is not a dense CPU tensor; save it as one"
            )
        key = normalised_name(name)
        if key in tensors:
            raise CheckpointError(
                f"{source}: {stored_names[key]} and {name} are the same parameter; delete one"
            )
        tensors[key], stored_names[key] = tensor, name
    hyper_parameters = content.get("hyper_parameters")
    if not isinstance(hyper_parameters, Mapping):
        raise CheckpointError(
            f"{source}: no hyper_parameters, so the model's sizes are unknown; pass a checkpoint of the "
            "release"
        )
    others = sorted(str(name) for name in set(content) - {"state_dict", "hyper_parameters"})
    return Checkpoint(source, tensors, dict(hyper_parameters), tuple(others))


def settings_section(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """A section of the hyper-parameters, such as `model_config`. Raises CheckpointError if there is none."""
    section = checkpoint.hyper_parameters.get(name)
    if not isinstance(section, Mapping):
        raise CheckpointError(
            f"{checkpoint.path}: hyper_parameters has no {name}, so the model's sizes are unknown; pass a "
            "checkpoint of the release"
        )
    return dict(section)


def require_settings(settings: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    """Raise CheckpointError naming those of `names` that `settings` lacks."""
    missing = [name for name in names if name not in settings]
    if missing:
        raise CheckpointError(f"{where} lacks {', '.join(missing)}; pass a checkpoint of the release")


def _path_as_text(*parts: str) -> str:
    return str(PurePath(*parts))


# Allow-list: types that training frameworks save in hyper_parameters, read as dictionaries and text.
_SAFE_GLOBALS: list[Any] = [
    *(
        (dict, f"{module}.AttributeDict")
        for module in (
            "lightning.fabric.utilities.data",
            "lightning_fabric.utilities.data",
            "lightning.pytorch.utilities.parsing",
            "pytorch_lightning.utilities.parsing",
        )
    ),
    *((_path_as_text, f"pathlib.{kind}Path") for kind in ("Posix", "Windows", "PurePosix", "PureWindows")),
]


def _load(source: Path, mmap: bool) -> Any:
    if not source.is_file():
        raise CheckpointError(f"{source}: no such file")
    _refuse_stand_in(source)
    if TorchVersion(torch.__version__) < _SAFE_TORCH:
        raise CheckpointError(
            f"{source}: torch {torch.__version__} can be made to run code by a .ckpt file; install torch "
            f"{_SAFE_TORCH} or newer to read it"
        )
    zipped = zipfile.is_zipfile(source)
    if zipped:
        _check_archive(source)
    with torch.serialization.safe_globals(_SAFE_GLOBALS):
        try:
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap and zipped)
        except pickle.UnpicklingError as error:
            refused = re.search(r"GLOBAL (\S+)", str(error))
            if refused is None:
                raise CheckpointError(
                    f"{source}: not a checkpoint of plain data and tensors, so it was not loaded"
                ) from error
            raise CheckpointError(
                f"{source}: refers to {refused.group(1)}, which is neither data nor a tensor; the file was "
                "not loaded because that could run code"
            ) from error
        except _CORRUPT_FILE_ERRORS as error:
            raise CheckpointError(
                f"{source}: truncated, damaged or not a torch checkpoint; download it again"
            ) from error


def _refuse_stand_in(source: Path) -> None:
    """Raise CheckpointError if the file is a Git LFS pointer or a web page."""
    found = stand_in_at(source)
    if found is not None:
        raise CheckpointError(found)


def _check_archive(source: Path) -> None:
    """Verify the CRC-32 of every entry in the archive: a damaged file must not become a policy."""
    try:
        with zipfile.ZipFile(source) as archive:
            broken = archive.testzip()
    except _CORRUPT_FILE_ERRORS as error:
        raise CheckpointError(f"{source}: truncated or damaged; download it again") from error
    if broken is not None:
        raise CheckpointError(f"{source}: entry {broken} is damaged; download it again")


# ------------------------------------------------------------------ writing


@contextmanager
def atomic_file(path: str | Path) -> Iterator[IO[bytes]]:
    """A temporary binary file that is renamed to `path` when the block succeeds."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    try:
        with os.fdopen(descriptor, "w+b") as file:
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
    """Write `PATH.sha256` in the format of `sha256sum`; return the hexadecimal digest."""
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
    """Write a `.ckpt` file atomically; names are stored as given, tensors that share memory once."""
    content = {"state_dict": dict(tensors), "hyper_parameters": dict(hyper_parameters)}
    with atomic_file(path) as file:
        torch.save(content, file)


def write_patched_copy(path: str | Path, original: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a copy of the `.ckpt` file `original` with some of its weights replaced.

    Each tensor overwrites its bytes in the copy, in the dtype of the original; everything else, unchanged
    weights included, stays identical byte for byte.

    Args:
        path: the copy, written atomically.
        original: a file of `torch.save`.
        tensors: new weights by normalised name; any subset of the original's names, in its shapes
            (not checked here, see `check_tensors`).

    Raises:
        CheckpointError: the original is not a zip archive of `torch.save`, or lacks one of the names.
    """
    source = Path(original)
    offsets = _tensor_offsets(source)
    unknown = [name for name in tensors if name not in offsets]
    if unknown:
        raise CheckpointError(
            f"{source}: no tensor {', '.join(unknown)}; pass the checkpoint that was imported"
        )
    with atomic_file(path) as file:
        with source.open("rb") as template:
            shutil.copyfileobj(template, file, 1 << 24)
        for name, tensor in tensors.items():
            offset, stored = offsets[name]
            file.seek(offset)
            file.write(_raw_bytes(tensor.to(stored.dtype)).data)
        _repair_checksums(file)


def _tensor_offsets(source: Path) -> dict[str, tuple[int, Tensor]]:
    """Byte offset in the file, and a fake tensor of its shape and dtype, by normalised name."""
    _refuse_stand_in(source)
    if not zipfile.is_zipfile(source):
        raise CheckpointError(
            f"{source}: truncated or in a format older than torch 1.6; save it again with torch.save"
        )
    with FakeTensorMode():
        state = _load(source, mmap=False)["state_dict"]
    offsets = {}
    for name, tensor in state.items():
        start = tensor.untyped_storage()._checkpoint_offset
        if start is None or not tensor.is_contiguous():
            raise CheckpointError(f"{source}: {name} is not stored contiguously; export without --like")
        offsets[normalised_name(name)] = (start + tensor.storage_offset() * tensor.element_size(), tensor)
    return offsets


def _repair_checksums(file: IO[bytes]) -> None:
    """Recompute the CRC-32 of every entry of an uncompressed zip archive that was modified in place."""
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
    """A tensor's bytes, not copied if it is contiguous."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()


def write_safetensors(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file atomically, tensor by tensor: the library's own writer copies them all first.

    Raises CheckpointError for an unsupported dtype.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _SAFETENSORS_TYPES:
            raise CheckpointError(
                f"{name} has the unsupported dtype {tensor.dtype}; convert it to a float or integer dtype"
            )
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
    """Tensors of one model, saved in one or several files, by name without `_orig_mod.`; memory-mapped.

    Raises CheckpointError for a file that cannot be read.
    """
    tensors: dict[str, Tensor] = {}
    for path in paths:
        try:
            _refuse_stand_in(path)
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dictionary
                    tensors[name.replace("_orig_mod.", "")] = file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{path}: truncated, damaged or not a safetensors file ({error}); save the model again"
            ) from error
    return tensors
