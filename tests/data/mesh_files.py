"""Small mesh files in every format, and the check that a damaged one is refused."""

from pathlib import Path
from typing import Any

import pytest
import trimesh

from data import MeshError, load_mesh

TRIANGLE = [[0.0, 0, 0], [1, 0, 0], [0, 2, 0]]


def bumpy() -> trimesh.Trimesh:
    sphere = trimesh.creation.icosphere(subdivisions=2)
    sphere.vertices *= [1.0, 2.0, 0.5]
    sphere.vertices += [3.0, 0.0, 1.0]
    return sphere


def exported(file_type: str) -> bytes:
    content = bumpy().export(file_type=file_type)
    return content.encode() if isinstance(content, str) else content


PLY = (
    "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
    "element face 1\nproperty list uchar int vertex_indices\nend_header\n0 0 0\n1 0 0\n0 1 0\n"
)


OFF = "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n"


OBJ = "v 0 0 0\nv 1 0 0\nv 0 1 0\n"


STL = "solid x\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\nendloop\nendfacet\n"


def good_glb(builder: Any) -> Any:
    attributes = {"POSITION": builder.accessor(TRIANGLE)}
    mesh = builder.mesh({"attributes": attributes, "indices": builder.accessor([0, 1, 2], "uint16")})
    builder.node(root=True, mesh=mesh)
    return builder


def check_refused(path: Path, content: bytes | str, reason: str) -> None:
    """`load_mesh` refuses a file with one line that names it, matches `reason` and gives a fix."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(MeshError, match=reason) as caught:
        load_mesh(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "; " in str(caught.value)
    assert "\n" not in str(caught.value)
