"""Parses glTF 2.0 files (.glb and .gltf) strictly: JSON, buffers, accessors and node transforms."""

import base64
import binascii
import json
import shlex
import struct
import urllib.parse
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.file_content import refuse_stand_in
from data.mesh import MeshError

# Component types of glTF 2.0, section 3.6.2.2, and the largest integer of the normalised ones.
_COMPONENTS: dict[int, str] = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
_NORMALISED_MAX: dict[int, float] = {
    5120: 127.0,
    5121: 255.0,
    5122: 32767.0,
    5123: 65535.0,
    5125: 4294967295.0,
}
_WIDTHS: dict[str, int] = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4, "MAT2": 4, "MAT3": 9, "MAT4": 16}
_COMPRESSED: dict[str, str] = {
    "KHR_draco_mesh_compression": "Draco",
    "EXT_meshopt_compression": "meshopt",
    "KHR_meshopt_compression": "meshopt",
}
# A sparse or empty accessor takes no bytes in the file, so its count alone must not size an allocation.
_MAX_COUNT = 100_000_000


@dataclass
class Gltf:
    """A parsed glTF file: `json` is its document; buffers are loaded when an accessor needs them.

    Every method raises MeshError, naming the file, if the document is inconsistent.
    """

    path: Path
    json: dict[str, Any]
    binary: bytes | None
    _buffers: dict[int, bytes] = field(default_factory=dict)

    def error(self, reason: str, fix: str = "export the file again") -> MeshError:
        """A MeshError that reads "<file>: <reason>; <fix>"."""
        return MeshError(f"{self.path}: {reason}; {fix}")

    def items(self, key: str) -> list[dict[str, Any]]:
        """A top-level list such as "nodes", empty if absent."""
        found = self.json.get(key, [])
        if not isinstance(found, list) or not all(isinstance(item, dict) for item in found):
            raise self.error(f'the "{key}" entry of the JSON is not a list of objects')
        return found

    def item(self, key: str, index: Any) -> dict[str, Any]:
        """Entry `index` of a top-level list."""
        found = self.items(key)
        if not _is_index(index) or index >= len(found):
            raise self.error(f"it refers to {key}[{index}], but has only {len(found)} {key}")
        return found[index]

    def accessor(self, index: Any) -> NDArray[Any]:
        """Decode accessor `index` to (count, width): stored dtype, or float32 if it is normalised.

        Handles strided buffer views, sparse accessors and accessors without a buffer view (zeros).
        """
        accessor = self.item("accessors", index)
        count = self._non_negative(accessor.get("count"), f"accessors[{index}].count")
        if count > _MAX_COUNT:
            raise self.error(f"accessors[{index}] claims {count} elements", "simplify the mesh")
        component = accessor.get("componentType")
        width = _WIDTHS.get(accessor.get("type", ""))
        if component not in _COMPONENTS or width is None:
            raise self.error(f"accessors[{index}] has unknown type {accessor.get('type')}/{component}")
        if "bufferView" in accessor:
            start = self._non_negative(accessor.get("byteOffset", 0), f"accessors[{index}].byteOffset")
            values = self._read(accessor["bufferView"], start, count, width, component)
        else:
            values = np.zeros((count, width), dtype=_COMPONENTS[component])
        if "sparse" in accessor:
            values = self._apply_sparse(values, accessor["sparse"], index, component)
        if accessor.get("normalized") and component in _NORMALISED_MAX:
            values = np.maximum(values / _NORMALISED_MAX[component], -1.0).astype(np.float32)
        return values

    def _apply_sparse(self, values: NDArray[Any], sparse: Any, index: Any, component: int) -> NDArray[Any]:
        try:
            count = self._non_negative(sparse["count"], f"accessors[{index}].sparse.count")
            where, what = sparse["indices"], sparse["values"]
            index_type = where["componentType"]
            if index_type not in (5121, 5123, 5125):
                raise self.error(f"accessors[{index}].sparse has index type {index_type}")
            indices = self._read(where["bufferView"], where.get("byteOffset", 0), count, 1, index_type)
            width = values.shape[1]
            changed = self._read(what["bufferView"], what.get("byteOffset", 0), count, width, component)
        except (KeyError, TypeError) as problem:
            raise self.error(f"accessors[{index}].sparse is incomplete ({problem})") from problem
        if count and indices.max() >= len(values):
            raise self.error(f"accessors[{index}].sparse refers to element {indices.max()} of {len(values)}")
        values = values.copy()
        values[indices[:, 0].astype(np.int64)] = changed
        return values

    def _read(self, view_index: Any, start: int, count: int, width: int, component: int) -> NDArray[Any]:
        view = self.item("bufferViews", view_index)
        where = f"bufferViews[{view_index}]"
        buffer = self.buffer(view.get("buffer"))
        offset = self._non_negative(view.get("byteOffset", 0), f"{where}.byteOffset")
        length = self._non_negative(view.get("byteLength"), f"{where}.byteLength")
        dtype = np.dtype(_COMPONENTS[component])
        size = dtype.itemsize * width
        stride = self._non_negative(view.get("byteStride", size), f"{where}.byteStride")
        needed = start + stride * (count - 1) + size if count else 0
        if needed > length or offset + length > len(buffer) or stride < size:
            raise self.error(
                f"{where} is truncated: it needs {max(needed, length)} bytes from offset {offset}, but the "
                f"buffer has {len(buffer)}"
            )
        if not count:
            return np.zeros((0, width), dtype=dtype)
        shape, strides = (count, width), (stride, dtype.itemsize)
        return np.ndarray(shape, dtype, buffer, offset + start, strides).copy()

    def buffer(self, index: Any) -> bytes:
        """The bytes of buffer `index`, at least its byteLength of them."""
        if index not in self._buffers:
            buffer = self.item("buffers", index)
            uri = buffer.get("uri")
            if uri is None:
                if self.binary is None or index != 0:
                    raise self.error(f"buffers[{index}] has no data (truncated file?)")
                data = self.binary
            elif not isinstance(uri, str):
                raise self.error(f"buffers[{index}].uri is not a string")
            elif uri.startswith("data:"):
                data = self._data_uri(uri, f"buffers[{index}]")
            else:
                data = self.side_file(uri, "buffer")
            length = self._non_negative(buffer.get("byteLength"), f"buffers[{index}].byteLength")
            if len(data) < length:
                raise self.error(
                    f"buffers[{index}] is truncated ({len(data)} of {length} bytes)",
                    "copy or export it again",
                )
            self._buffers[index] = data
        return self._buffers[index]

    def image(self, index: Any) -> bytes:
        """The encoded file (PNG, JPEG, …) of image `index`."""
        image = self.item("images", index)
        uri = image.get("uri")
        if not isinstance(uri, str):
            view = self.item("bufferViews", image.get("bufferView"))
            length = self._non_negative(view.get("byteLength"), "the byteLength of an image's bufferView")
            return self._read(image["bufferView"], 0, length, 1, 5121).tobytes()
        if uri.startswith("data:"):
            return self._data_uri(uri, f"images[{index}]")
        return self.side_file(uri, "image")

    def _data_uri(self, uri: str, what: str) -> bytes:
        head, _, body = uri.partition(",")
        if not head.endswith(";base64"):
            return urllib.parse.unquote_to_bytes(body)
        try:
            return base64.b64decode(body, validate=True)
        except binascii.Error as problem:
            raise self.error(f"the data URI of {what} is damaged ({problem})") from problem

    def side_file(self, uri: str, what: str) -> bytes:
        """The content of the file at a relative URI; `what` it is ("buffer", "image") for the message."""
        if urllib.parse.urlparse(uri).scheme:
            raise self.error(
                f"the {what} at {uri[:80]} is remote and will not be downloaded", "export a single GLB"
            )
        side = self.path.parent / urllib.parse.unquote(uri)
        try:
            data = side.read_bytes()
        except OSError as problem:
            reason = f"the {what} file {side.name} cannot be read ({problem.strerror})"
            raise self.error(reason, "put it next to the .gltf or export a single GLB") from problem
        refuse_stand_in(side, data)
        return data

    def _non_negative(self, value: Any, what: str) -> int:
        if not _is_index(value):
            raise self.error(f"{what} is {value!r}, not an integer >= 0")
        return int(value)


def read_gltf(path: Path) -> Gltf:
    """Parse a .glb or .gltf file (recognised by its content) without decoding its buffers.

    Raises MeshError naming the file: empty, truncated, not glTF 2, invalid JSON, or compressed with Draco
    or meshopt (other readers silently load those as garbage). OSError if it cannot be opened.
    """
    data = path.read_bytes()
    if not data:
        raise MeshError(f"{path}: the file is empty; export it again")
    refuse_stand_in(path, data)
    binary = None
    if data[:4] == b"glTF":
        text, binary = _glb_chunks(path, data)
    else:
        text = data
    try:
        document = json.loads(text.decode("utf-8-sig"))
    except (UnicodeDecodeError, ValueError, RecursionError) as problem:
        raise MeshError(f"{path}: the JSON cannot be parsed ({problem}); export the file again") from problem
    if not isinstance(document, dict):
        raise MeshError(f"{path}: not a glTF document; export the file again")
    asset = document.get("asset")
    version = str(asset.get("version")) if isinstance(asset, dict) else "unknown"
    if not version.startswith("2."):
        raise MeshError(f"{path}: glTF version {version} is not supported; export as glTF 2.0")
    gltf = Gltf(path, document, binary)
    with malformed(gltf):
        _refuse_compression(gltf)
    return gltf


@contextmanager
def malformed(gltf: Gltf) -> Iterator[None]:
    """Turn errors from walking malformed JSON (such as a list instead of an object) into MeshError."""
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError) as problem:
        raise gltf.error(f"the JSON is malformed ({type(problem).__name__}: {problem})") from problem


def _glb_chunks(path: Path, data: bytes) -> tuple[bytes, bytes | None]:
    """The JSON and BIN chunks of a GLB (glTF 2.0, section 4.4); BIN is None if absent."""
    if len(data) < 20:
        raise MeshError(f"{path}: the GLB is truncated ({len(data)} bytes); copy or export it again")
    version, length = struct.unpack_from("<II", data, 4)
    if version != 2:
        raise MeshError(f"{path}: GLB version {version} is not supported; export as glTF 2.0")
    if length > len(data):
        raise MeshError(
            f"{path}: the GLB is truncated ({len(data)} of {length} bytes); copy or export it again"
        )
    chunks: dict[bytes, bytes] = {}
    offset = 12
    while offset + 8 <= length:
        size, kind = struct.unpack_from("<I4s", data, offset)
        if offset + 8 + size > length:
            raise MeshError(f"{path}: a GLB chunk is truncated; copy or export it again")
        chunks.setdefault(kind, data[offset + 8 : offset + 8 + size])
        offset += 8 + size
    if b"JSON" not in chunks:
        raise MeshError(f"{path}: the GLB has no JSON chunk; export it again")
    return chunks[b"JSON"], chunks.get(b"BIN\x00")


def _refuse_compression(gltf: Gltf) -> None:
    extensions: set[str] = set()
    for key in ("extensionsUsed", "extensionsRequired"):
        extensions.update(gltf.json.get(key, []))
    for view in gltf.items("bufferViews"):
        extensions.update(view.get("extensions", {}))
    for mesh in gltf.items("meshes"):
        for primitive in mesh.get("primitives", []):
            extensions.update(primitive.get("extensions", {}))
    for name, scheme in _COMPRESSED.items():
        if name in extensions:
            plain = gltf.path.with_name(f"{gltf.path.stem}_plain.glb")
            raise gltf.error(
                f"the mesh is {scheme}-compressed ({name})",
                "export it without mesh compression, or run: gltf-transform copy "
                f"{shlex.quote(str(gltf.path))} {shlex.quote(str(plain))}",
            )


@dataclass(frozen=True, eq=False)
class NodeTree:
    """World matrices (4, 4) and parents (node index or -1) of nodes; `scene`: the scene's, depth first.

    `worlds` and `parents` also hold the nodes outside the scene that `add_outside` was called with, their
    ancestors and the descendants of those. `damaged`: nodes whose own transform cannot be read, with the
    reason; below them `worlds` is NaN. A damaged joint must not cost the geometry, so only `require` raises.
    """

    scene: list[int]
    worlds: dict[int, NDArray[np.float64]]
    parents: dict[int, int]
    damaged: dict[int, MeshError] = field(default_factory=dict)

    def chain(self, node: int) -> Iterator[int]:
        """`node` and its ancestors, upwards."""
        while node >= 0:
            yield node
            node = self.parents[node]

    def require(self, nodes: Iterable[int]) -> None:
        """Raise the MeshError of the first of `nodes` whose place in the world cannot be read."""
        for node in nodes:
            for one in self.chain(node):
                if one in self.damaged:
                    raise self.damaged[one]


def scene_tree(gltf: Gltf) -> NodeTree:
    """The nodes of the default scene; without scenes, of all trees.

    A root that is listed twice, or that is also a descendant of another root, is read once, where its parent
    puts it. Raises MeshError for cycles and shared children.
    """
    nodes = gltf.items("nodes")
    scenes = gltf.items("scenes")
    children = {child for node in nodes for child in node.get("children", [])}
    if scenes:
        listed = gltf.item("scenes", gltf.json.get("scene", 0)).get("nodes", [])
        below = _descendants(gltf, listed) if children.intersection(listed) else set()
        roots = [root for root in dict.fromkeys(listed) if root not in below]
        if listed and not roots:
            raise gltf.error(f"nodes[{listed[0]}] has two parents or is part of a cycle")
    else:
        roots = [index for index in range(len(nodes)) if index not in children]
    tree = NodeTree([], {}, {})
    for root in roots:
        tree.scene.extend(_add_tree(gltf, tree, root))
    return tree


def add_outside(gltf: Gltf, tree: NodeTree, nodes: list[int]) -> None:
    """Add nodes that may lie outside the scene, each with the whole tree it belongs to.

    Raises MeshError for cycles, shared children and nodes that do not exist.
    """
    above = node_parents(gltf.items("nodes"))
    for node in nodes:
        gltf.item("nodes", node)
        if node in tree.worlds:
            continue
        top, seen = node, {node}
        while top in above:
            top = above[top]
            if top in seen:
                raise gltf.error(f"nodes[{top}] is part of a cycle")
            seen.add(top)
        _add_tree(gltf, tree, top)


def node_parents(nodes: list[dict[str, Any]]) -> dict[int, int]:
    """The parent of each node of a document's list that has one, by index."""
    return {child: index for index, node in enumerate(nodes) for child in node.get("children", [])}


def _descendants(gltf: Gltf, roots: list[int]) -> set[int]:
    """All nodes strictly below any of `roots`, also if some form a cycle."""
    found: set[int] = set()
    stack = list(roots)
    while stack:
        for child in gltf.item("nodes", stack.pop()).get("children", []):
            if child not in found:
                found.add(child)
                stack.append(child)
    return found


def _add_tree(gltf: Gltf, tree: NodeTree, root: int) -> list[int]:
    """Add `root` and its descendants, depth first; return their indices."""
    order: list[int] = []
    stack: list[tuple[Any, int]] = [(root, -1)]
    while stack:
        index, parent = stack.pop()
        node = gltf.item("nodes", index)
        if index in tree.worlds:
            raise gltf.error(f"nodes[{index}] has two parents or is part of a cycle")
        try:
            local = _local_matrix(gltf, node, index)
        except MeshError as problem:
            tree.damaged[index] = problem
            local = np.full((4, 4), np.nan)
        tree.worlds[index] = local if parent < 0 else tree.worlds[parent] @ local
        tree.parents[index] = parent
        order.append(index)
        stack.extend((child, index) for child in reversed(node.get("children", [])))
    return order


def _local_matrix(gltf: Gltf, node: dict[str, Any], index: int) -> NDArray[np.float64]:
    """A node's local matrix (4, 4) (glTF 2.0, section 3.5.3): stored column-major, or as T R S."""
    try:
        if "matrix" in node:
            matrix = np.array(node["matrix"], dtype=np.float64).reshape(4, 4).T
        else:
            x, y, z, w = (float(value) for value in node.get("rotation", (0, 0, 0, 1)))
            norm = x * x + y * y + z * z + w * w
            s = 2.0 / norm if norm > 0 else 0.0
            rotation = np.array(
                [
                    [1 - s * (y * y + z * z), s * (x * y - z * w), s * (x * z + y * w)],
                    [s * (x * y + z * w), 1 - s * (x * x + z * z), s * (y * z - x * w)],
                    [s * (x * z - y * w), s * (y * z + x * w), 1 - s * (x * x + y * y)],
                ]
            )
            matrix = np.eye(4)
            matrix[:3, :3] = rotation * np.array(node.get("scale", (1, 1, 1)), dtype=np.float64).reshape(3)
            matrix[:3, 3] = np.array(node.get("translation", (0, 0, 0)), dtype=np.float64).reshape(3)
    except (ValueError, TypeError) as problem:
        raise gltf.error(f"the transform of nodes[{index}] cannot be read ({problem})") from problem
    if not np.isfinite(matrix).all():
        raise gltf.error(f"the transform of nodes[{index}] is not finite")
    return matrix


def _is_index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
