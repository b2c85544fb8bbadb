"""Packs the page's geometry: arrays of small integers in one compressed block of text."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

_TYPES = {"uint8": "Uint8Array", "uint16": "Uint16Array", "int16": "Int16Array", "uint32": "Uint32Array"}
_TYPES["float32"] = "Float32Array"
_ALIGNMENT = 4


class Block:
    """Arrays that a page reads as typed arrays; `add` returns where each lies."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, array: NDArray[Any]) -> list[Any]:
        """Append an array, flattened; returns [name of the typed array, offset in bytes, length]."""
        content = np.ascontiguousarray(array)
        found = [_TYPES[content.dtype.name], self._size, content.size]
        data = content.astype(content.dtype.newbyteorder("<"), copy=False).tobytes()
        data += bytes(-len(data) % _ALIGNMENT)
        self._parts.append(data)
        self._size += len(data)
        return found

    def text(self) -> str:
        """All arrays, compressed by zlib, in base64."""
        return compressed(b"".join(self._parts))


def compressed(data: bytes) -> str:
    """Bytes as the page stores them: compressed by zlib, in base64."""
    return base64.b64encode(zlib.compress(data, 9)).decode()


def quantised_positions(vertices: NDArray[np.floating]) -> NDArray[np.int16]:
    """Mesh-frame coordinates (V, 3) in [-1, 1] as integers up to 32,767."""
    return np.round(np.clip(vertices, -1, 1) * 32767).astype(np.int16)


def quantised_weights(weights: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Weights (V, 4), largest first, rows of sum 1, as bytes of sum 255."""
    rounded = np.round(weights * 255).astype(np.int64)
    rounded[:, 0] += 255 - rounded.sum(axis=1)
    return rounded.astype(np.uint8)
