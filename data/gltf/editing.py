"""Appends nodes, accessors and data to a glTF document, leaves the rest in place, and writes one GLB."""

import copy
import json
import re
import struct
import urllib.parse
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.gltf.document import Gltf
from data.mesh import MeshError

ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
_COMPONENT_TYPES = {"uint8": 5121, "uint16": 5123, "uint32": 5125, "float32": 5126}
# Some extensions want their buffer views aligned to 8 bytes.
_BUFFER_ALIGNMENT = 8
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\xabKTX 20\xbb", "image/ktx2"),
    (b"DDS ", "image/vnd-ms.dds"),
    (b"GIF8", "image/gif"),
    (b"BM", "image/bmp"),
)


class GltfEditor:
    """A copy of a parsed document with all buffers joined to one, ready to be written as a GLB.

    `json` may be changed freely. The bytes of the first buffer keep their offsets; further buffers (of a
    .gltf with side files) follow it, unchanged. Image files are embedded as they are. `notes`: image files
    that are missing or remote, whose entries stay as they are. Raises MeshError for a missing buffer.
    """

    def __init__(self, gltf: Gltf) -> None:
        self.path = gltf.path
        self.json: dict[str, Any] = copy.deepcopy(gltf.json)
        self.notes: list[str] = []
        self._data = bytearray()
        self._known: dict[tuple[str, str, bytes], int] = {}
        self._join_buffers(gltf)
        self._embed_images(gltf)

    def entries(self, key: str) -> list[dict[str, Any]]:
        """A top-level list such as "nodes", created if it is absent."""
        found: list[dict[str, Any]] = self.json.setdefault(key, [])
        return found

    def add(self, key: str, entry: dict[str, Any]) -> int:
        """Append an entry to a top-level list and return its index."""
        self.entries(key).append(entry)
        return len(self.json[key]) - 1

    def add_view(self, content: bytes, target: int | None = None) -> int:
        """Append bytes, aligned to 4, as a buffer view."""
        self._data += b"\0" * (-len(self._data) % 4)
        view: dict[str, Any] = {"buffer": 0, "byteOffset": len(self._data), "byteLength": len(content)}
        if target is not None:
            view["target"] = target
        self._data += content
        return self.add("bufferViews", view)

    def add_accessor(
        self,
        values: NDArray[Any],
        kind: str,
        target: int | None = None,
        bounds: bool = False,
        normalised: bool = False,
    ) -> int:
        """Append values (N, width), uint8, uint16, uint32 or float32; equal values share one accessor."""
        little = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"))
        key = (
            f"{kind} {values.dtype.name} {target} {bounds} {normalised}",
            str(values.shape),
            little.tobytes(),
        )
        if key not in self._known:
            accessor: dict[str, Any] = {
                "bufferView": self.add_view(key[2], target),
                "componentType": _COMPONENT_TYPES[values.dtype.name],
                "count": len(values),
                "type": kind,
            }
            if normalised:
                accessor["normalized"] = True
            if bounds:
                accessor["min"] = values.min(axis=0).tolist()
                accessor["max"] = values.max(axis=0).tolist()
            self._known[key] = self.add("accessors", accessor)
        return self._known[key]

    def glb(self) -> bytes:
        """The document as a GLB (glTF 2.0, section 4.4)."""
        gltf = self.finished()
        text = json.dumps(gltf.json, ensure_ascii=False, separators=(",", ":"))
        # Half a surrogate pair can be written as an escape only.
        text = re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text)
        encoded = text.encode()
        encoded += b" " * (-len(encoded) % 4)
        chunks = struct.pack("<I4s", len(encoded), b"JSON") + encoded
        if gltf.binary:
            chunks += struct.pack("<I4s", len(gltf.binary), b"BIN\0") + gltf.binary
        return struct.pack("<4sII", b"glTF", 2, 12 + len(chunks)) + chunks

    def finished(self) -> Gltf:
        """The document as it is now."""
        if self._data:
            self._data += b"\0" * (-len(self._data) % 4)
            buffers = self.entries("buffers")
            if not buffers:
                buffers.append({})
            buffers[0]["byteLength"] = len(self._data)
        return Gltf(self.path, self.json, bytes(self._data) or None)

    def _join_buffers(self, gltf: Gltf) -> None:
        buffers = self.json.get("buffers", [])
        starts = []
        for index, buffer in enumerate(buffers):
            self._data += b"\0" * (-len(self._data) % _BUFFER_ALIGNMENT)
            starts.append(len(self._data))
            self._data += gltf.buffer(index)[: buffer["byteLength"]]
        for view in self.json.get("bufferViews", []):
            if view["buffer"]:
                view["byteOffset"] = view.get("byteOffset", 0) + starts[view["buffer"]]
                view["buffer"] = 0
        if buffers:
            buffers[0].pop("uri", None)
            del buffers[1:]

    def _embed_images(self, gltf: Gltf) -> None:
        for image in self.json.get("images", []):
            uri = image.get("uri")
            if not isinstance(uri, str) or uri.startswith("data:"):
                continue
            if urllib.parse.urlparse(uri).scheme:
                self.notes.append(f"the image at {uri[:80]} is remote and was not embedded")
                continue
            try:
                content = gltf.side_file(uri, "image")
            except MeshError as problem:
                self.notes.append(str(problem).removeprefix(f"{gltf.path}: "))
                continue
            del image["uri"]
            image["bufferView"] = self.add_view(content)
            image["mimeType"] = image.get("mimeType") or image_type(content)


def image_type(content: bytes) -> str:
    """The media type of an image file by its first bytes, "application/octet-stream" if unknown."""
    for start, kind in _SIGNATURES:
        if content.startswith(start):
            return kind
    return "image/webp" if content[:4] == b"RIFF" and content[8:12] == b"WEBP" else "application/octet-stream"
