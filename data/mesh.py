"""The triangle mesh and its frame (`Mesh`), and the error for every unusable file (`MeshError`)."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

# The axis that points up in a file.
UpAxis = Literal["y", "z"]


class MeshError(ValueError):
    """A mesh or rig (file) that cannot be used; the message reads "<file>: <reason>; <fix>"."""


@dataclass(frozen=True, eq=False)
class Mesh:
    """A triangle mesh in the mesh frame: bounding box centred at 0, longest side spanning [-1, 1].

    By convention y is up and +z the front; files keep their orientation unless they are read with `up` "z".
    `vertices` (V, 3) float32, mesh frame. `faces` (F, 3) int64, indices into `vertices`. `name`: its origin
    (file stem or creature).
    `centre` (3,) float64 and `scale` map back to the original frame: original = vertices / scale + centre.
    Use `normalise` to make one from raw arrays. Raises MeshError for wrong shapes, non-finite vertices or
    indices out of range.
    """

    vertices: NDArray[np.float32]
    faces: NDArray[np.int64]
    name: str
    centre: NDArray[np.float64]
    scale: float

    def __post_init__(self) -> None:
        vertices, faces = check_triangles(self.vertices, self.faces, self.name)
        centre = np.asarray(self.centre, dtype=np.float64)
        if centre.shape != (3,) or not np.isfinite(centre).all() or not 0 < self.scale < np.inf:
            raise MeshError(
                f"{self.name}: centre {self.centre} and scale {self.scale} do not define the original frame; "
                "use three finite numbers and a positive scale"
            )
        object.__setattr__(self, "vertices", np.ascontiguousarray(vertices, dtype=np.float32))
        object.__setattr__(self, "faces", faces)
        object.__setattr__(self, "centre", centre)
        object.__setattr__(self, "scale", float(self.scale))


def y_up(points: ArrayLike, up: UpAxis | None) -> NDArray[np.floating]:
    """Points (N, 3), any units, with y up: for `up` "z", (x, y, z) becomes (x, z, -y), else as they are.

    A rotation by 90 degrees about x, exact: -y, the front of z-up files, becomes +z. Integers become float64.
    """
    array = np.asarray(points)
    if not np.issubdtype(array.dtype, np.floating):
        array = array.astype(np.float64)
    if up != "z":
        return array
    return np.stack([array[:, 0], array[:, 2], -array[:, 1]], axis=1)


def check_triangles(
    vertices: ArrayLike, faces: ArrayLike, name: str
) -> tuple[NDArray[np.floating], NDArray[np.int64]]:
    """Check a triangle mesh in any frame; return vertices (V, 3) as floats and faces (F, 3) as int64.

    Raises MeshError naming `name`: wrong shape, no vertices, no faces, non-finite, index out of range.
    """
    vertices = np.asarray(vertices)
    if not np.issubdtype(vertices.dtype, np.floating):
        vertices = vertices.astype(np.float64)
    faces = np.asarray(faces)
    if vertices.ndim != 2 or vertices.shape[1] != 3:
        raise MeshError(f"{name}: vertices have shape {vertices.shape}; pass (V, 3)")
    if not len(vertices):
        raise MeshError(f"{name}: the mesh has no vertices; export a triangle mesh")
    if faces.size == 0:
        raise MeshError(f"{name}: the mesh has no faces (a point cloud?); export a triangle mesh")
    if faces.ndim != 2 or faces.shape[1] != 3 or not np.issubdtype(faces.dtype, np.integer):
        raise MeshError(f"{name}: faces have shape {faces.shape}, dtype {faces.dtype}; pass integers (F, 3)")
    faces = np.ascontiguousarray(faces, dtype=np.int64)
    if not np.isfinite(vertices).all():
        bad = int((~np.isfinite(vertices).all(axis=1)).sum())
        raise MeshError(f"{name}: {bad} vertices are not finite (NaN or infinity); repair the mesh")
    low, high = int(faces.min()), int(faces.max())
    if low < 0 or high >= len(vertices):
        wrong = low if low < 0 else high
        raise MeshError(
            f"{name}: a face refers to vertex {wrong}, but the mesh has only {len(vertices)} vertices; "
            "repair it"
        )
    return vertices, faces


def normalise(vertices: ArrayLike, faces: ArrayLike, name: str) -> Mesh:
    """Bring a triangle mesh into the mesh frame (specification, section 12.1, bounds of vertices only).

    vertices (V, 3), any frame and float dtype; faces (F, 3) integers. The bounding box is centred at 0
    and the longest side scaled to length 2, one factor for all axes. Computed in float64.
    Raises MeshError naming `name` for what `check_triangles` refuses and for a mesh of zero extent or area.
    """
    checked, triangles = check_triangles(vertices, faces, name)
    points = checked.astype(np.float64)
    low, high = points.min(axis=0), points.max(axis=0)
    centre = low / 2 + high / 2
    half = float(np.max(high / 2 - low / 2))
    # Relative to the distance from the origin: an extent below float32's resolution is only rounding noise.
    if not half > 1e-30 or half < 1e-7 * float(np.abs(centre).max()):
        raise MeshError(
            f"{name}: the extent is zero (all vertices coincide); export a mesh with surface area"
        )
    scale = 1.0 / half
    points = (points - centre) * scale
    a, b, c = points[triangles[:, 0]], points[triangles[:, 1]], points[triangles[:, 2]]
    if not np.abs(np.cross(b - a, c - a)).max() > 0:
        raise MeshError(f"{name}: all faces have zero area; export a mesh with surface area")
    return Mesh(points.astype(np.float32), triangles, name, centre, scale)
