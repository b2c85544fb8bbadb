"""Detects damage in raw OBJ, PLY, STL and OFF files that trimesh would accept silently."""

import struct
from pathlib import Path

from data.file_content import refuse_stand_in
from data.mesh import MeshError


def check_raw(path: Path, file_type: str, data: bytes) -> bytes:
    """Refuse a damaged file; return the bytes to parse (an OBJ reduced to its geometry).

    file_type: "obj", "ply", "stl" or "off". Raises MeshError naming the file: truncated, not of this
    format, a stand-in (Git LFS pointer, web page), or (OBJ) a face that refers to a vertex that does not
    exist. An OBJ truncated at the end of a face line cannot be distinguished from a complete one.
    """
    refuse_stand_in(path, data)
    return {"obj": _check_obj, "ply": _check_ply, "stl": _check_stl, "off": _check_off}[file_type](path, data)


def _check_obj(path: Path, data: bytes) -> bytes:
    """Reduce to positions and faces, without comments and with absolute indices.

    Face indices count from 1; negative ones count back from the last vertex read so far, but the reader
    would count them from the end of the file.
    """
    vertices: list[bytes] = []
    faces: list[bytes] = []
    lowest, highest = 1, 0
    for line in data.replace(b"\\\r\n", b" ").replace(b"\\\n", b" ").splitlines():
        words = line.partition(b"#")[0].split()
        if not words:
            continue
        if words[0] == b"v":
            if len(words) < 4:
                raise _damaged(path, f"the vertex line {_quoted(line)} has too few numbers")
            vertices.append(b"v " + b" ".join(words[1:4]))
        elif words[0] == b"f":
            if len(words) < 4:
                raise _damaged(path, f"the face line {_quoted(line)} has too few vertices")
            try:
                corners = [int(word.partition(b"/")[0]) for word in words[1:]]
            except ValueError as problem:
                raise _damaged(path, f"the face line {_quoted(line)} cannot be read") from problem
            if min(corners) < 0:
                corners = [corner if corner >= 0 else len(vertices) + 1 + corner for corner in corners]
            lowest, highest = min(lowest, *corners), max(highest, *corners)
            faces.append(b"f " + b" ".join(b"%d" % corner for corner in corners))
    if not faces:
        raise MeshError(f"{path}: the mesh has no faces (a point cloud?); export a triangle mesh")
    if lowest < 1 or highest > len(vertices):
        wrong = lowest if lowest < 1 else highest
        raise MeshError(
            f"{path}: a face refers to vertex {wrong}, but the mesh has only {len(vertices)} vertices; "
            "repair it"
        )
    return b"\n".join([*vertices, *faces, b""])


def _check_ply(path: Path, data: bytes) -> bytes:
    if not data.startswith(b"ply"):
        raise MeshError(f'{path}: the file does not start with "ply"; export it again')
    head, end, body = data.partition(b"end_header")
    if not end:
        raise _damaged(path, "the header has no end_header line")
    counts: dict[bytes, int] = {}
    bare: bytes | None = None  # an element before its first property
    for line in [*head.splitlines(), b"element"]:
        words = line.split()
        if words[:1] == [b"element"] and bare is not None:
            raise _damaged(path, f"the header gives the element {_quoted(bare)} no properties")
        if words[:1] == [b"property"]:
            if len(words) != (5 if words[1:2] == [b"list"] else 3):
                raise _damaged(path, f"the header line {_quoted(line)} cannot be read")
            bare = None
        if len(words) == 3 and words[0] == b"element":
            if not words[2].isdigit():
                raise _damaged(path, f"the header line {_quoted(line)} cannot be read")
            counts[words[1]], bare = int(words[2]), words[1]
    if not counts.get(b"face") and not counts.get(b"tristrips"):
        raise MeshError(f"{path}: the mesh has no faces (a point cloud?); export a triangle mesh")
    # The reader checks the size of a binary body; a text body has one line per element.
    if b"format ascii" in head:
        lines = sum(1 for line in body.splitlines() if line.strip())
        if lines < sum(counts.values()):
            raise _damaged(path, f"only {lines} of {sum(counts.values())} lines are present")
    return data


def _check_stl(path: Path, data: bytes) -> bytes:
    """Binary: 80 bytes, a count, 50 bytes per triangle. Text: "solid" … "endsolid"."""
    if len(data) >= 84:
        needed = 84 + 50 * struct.unpack_from("<I", data, 80)[0]
        if needed == len(data) or (needed < len(data) and data.lstrip()[:5].lower() != b"solid"):
            return data[:needed]
    if data.lstrip()[:5].lower() != b"solid":
        raise _damaged(path, f"{len(data)} bytes are too few for its triangles")
    lower = data.lower()
    facets, corners = lower.count(b"endfacet"), lower.count(b"vertex")
    if b"endsolid" not in lower or corners != 3 * facets:
        raise _damaged(path, f"found {corners} corners but {facets} complete triangles")
    return data


def _check_off(path: Path, data: bytes) -> bytes:
    lines = [line for line in (raw.split(b"#")[0].strip() for raw in data.splitlines()) if line]
    if not lines or b"OFF" not in lines[0][:5]:
        raise MeshError(f'{path}: the file does not start with "OFF"; export it again')
    # The counts are on the second line or follow the keyword.
    header = lines[0].split()[1:]
    first = 1 if header else 2
    header = header or (lines[1].split() if len(lines) > 1 else [])
    if len(header) < 2 or not all(word.isdigit() for word in header[:2]):
        raise _damaged(path, "the header has no vertex and face counts")
    vertices, faces = int(header[0]), int(header[1])
    if not faces:
        raise MeshError(f"{path}: the mesh has no faces (a point cloud?); export a triangle mesh")
    if len(lines) - first < vertices + faces:
        raise _damaged(path, f"only {len(lines) - first} of {vertices + faces} lines are present")
    last = lines[first + vertices + faces - 1].split()
    if not last[0].isdigit() or len(last) < 1 + int(last[0]):
        raise _damaged(path, "the last face is incomplete")
    return data


def _damaged(path: Path, what: str) -> MeshError:
    return MeshError(f"{path}: {what} (truncated or damaged file); copy or export it again")


def _quoted(line: bytes) -> str:
    return repr(line[:40].decode("latin-1"))
