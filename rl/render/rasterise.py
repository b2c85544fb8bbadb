"""Draws triangles into a picture: a z-buffer with textures, transparency and soft light, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.compiled import kernel
from rl.render.textured_scene import Material, Surface, to_srgb

Floats = NDArray[np.float64]

# Layers of cut-out and translucent surfaces that are drawn in front of an opaque one.
_LAYERS = 8
# Directions towards the lights in the camera's frame (right, up, towards the viewer), and their strengths.
_LIGHTS = ((np.array([-0.5, 0.7, 0.7]), 0.75), (np.array([0.8, 0.1, 0.4]), 0.2))
_SKY, _GROUND = 0.42, 0.22


@dataclass(frozen=True, eq=False)
class Camera:
    """An orthographic camera.

    Attributes:
        axes: (3, 3) float64, rows: right, up, towards the viewer, in the world frame.
        centre: (2,) float64, right and up coordinates at the middle of the picture.
        scale: pixels per unit of length.
        width, height: of the picture, pixels.
    """

    axes: Floats
    centre: Floats
    scale: float
    width: int
    height: int

    def project(self, points: Floats) -> Floats:
        """Points (N, 3) in the world frame to (N, 3): x and y in pixels (y down), depth (less is nearer)."""
        seen = points @ self.axes.T
        x = (seen[:, 0] - self.centre[0]) * self.scale + self.width / 2
        y = self.height / 2 - (seen[:, 1] - self.centre[1]) * self.scale
        return np.stack([x, y, -seen[:, 2]], axis=1)


def view_axes(yaw_deg: float, pitch_deg: float) -> Floats:
    """The axes of a camera that looks from the front (+z, y up), turned to the right and raised."""
    yaw, pitch = np.deg2rad([yaw_deg, pitch_deg])
    towards = np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])
    right = np.array([np.cos(yaw), 0.0, -np.sin(yaw)])
    return np.stack([right, np.cross(towards, right), towards])


def framed(clouds: Sequence[Floats], axes: Floats, width: int, height: int, margin: float = 0.05) -> Camera:
    """The camera with these axes that shows all points of `clouds` (each (N, 3)) as large as they fit."""
    seen = np.concatenate(clouds) @ axes[:2].T
    low, high = seen.min(axis=0), seen.max(axis=0)
    room = np.array([width, height]) * (1 - 2 * margin)
    scale = float((room / np.maximum(high - low, 1e-9)).min())
    return Camera(axes, (low + high) / 2, scale, width, height)


def render(surfaces: Sequence[Surface], camera: Camera) -> NDArray[np.float64]:
    """The picture (height, width, 4) float64: sRGB colour, not multiplied by alpha, and alpha, in [0, 1]."""
    shape = (camera.height, camera.width)
    colour, cover = np.zeros((*shape, 3)), np.zeros(shape)
    nearest = np.full(shape, -np.inf)
    for _ in range(_LAYERS):
        depth = np.full(shape, np.inf)
        owner = np.full(shape, -1, dtype=np.int64)
        shares = np.zeros((*shape, 3))
        first = 0
        for surface in surfaces:
            rasterise(
                camera.project(surface.points),
                surface.faces,
                not surface.material.double_sided and surface.material.alpha_mode == "OPAQUE",
                nearest,
                first,
                depth,
                owner,
                shares,
            )
            first += len(surface.faces)
        seen = (owner >= 0) & (cover < 0.999)
        if not seen.any():
            break
        first = 0
        for surface in surfaces:
            mine = seen & (owner >= first) & (owner < first + len(surface.faces))
            light, alpha = _shade(surface, owner[mine] - first, shares[mine], camera)
            left = (1 - cover[mine]) * alpha
            colour[mine] += left[:, None] * light
            cover[mine] += left
            first += len(surface.faces)
        nearest = np.where(cover >= 0.999, np.inf, np.maximum(nearest, np.where(owner >= 0, depth, np.inf)))
    return np.dstack([to_srgb(colour / np.maximum(cover, 1e-9)[..., None]), cover])


@kernel()
def rasterise(
    points: Any, faces: Any, cull: bool, nearest: Any, first: int, depth: Any, owner: Any, shares: Any
) -> None:
    """Keep, for each pixel's centre, the nearest face that covers it and lies behind `nearest`.

    points (V, 3) float64: pixels (y down) and depth; faces (F, 3) int64; `cull`: skip clockwise faces (seen
    from behind). Updates depth (H, W) float64, owner (H, W) int64 (`first` + the face) and shares (H, W, 3)
    float64 (barycentric coordinates) in place; `nearest` (H, W) float64.
    """
    height, width = depth.shape
    for face in range(len(faces)):
        a, b, c = points[faces[face, 0]], points[faces[face, 1]], points[faces[face, 2]]
        # Twice the area; y points down, so that counter-clockwise faces have a negative one.
        area = (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
        if area == 0.0 or (cull and area > 0.0):
            continue
        x0 = max(0, int(np.ceil(min(a[0], b[0], c[0]) - 0.5)))
        x1 = min(width - 1, int(np.floor(max(a[0], b[0], c[0]) - 0.5)))
        y0 = max(0, int(np.ceil(min(a[1], b[1], c[1]) - 0.5)))
        y1 = min(height - 1, int(np.floor(max(a[1], b[1], c[1]) - 0.5)))
        for row in range(y0, y1 + 1):
            y = row + 0.5
            for column in range(x0, x1 + 1):
                x = column + 0.5
                u = ((b[0] - x) * (c[1] - y) - (b[1] - y) * (c[0] - x)) / area
                v = ((c[0] - x) * (a[1] - y) - (c[1] - y) * (a[0] - x)) / area
                w = 1.0 - u - v
                if u < 0.0 or v < 0.0 or w < 0.0:
                    continue
                z = u * a[2] + v * b[2] + w * c[2]
                if nearest[row, column] < z < depth[row, column]:
                    depth[row, column] = z
                    owner[row, column] = first + face
                    shares[row, column, 0] = u
                    shares[row, column, 1] = v
                    shares[row, column, 2] = w


def _shade(
    surface: Surface, faces: NDArray[np.int64], shares: Floats, camera: Camera
) -> tuple[Floats, Floats]:
    """Linear colours (N, 3) and alphas (N,) of N pixels, each in a face with barycentric shares (N, 3)."""
    corners = surface.faces[faces]
    material = surface.material
    base = np.einsum("nk,nki->ni", shares, surface.colours[corners]) * material.factor
    if material.texture is not None:
        base *= sample(material.texture, np.einsum("nk,nki->ni", shares, surface.uv[corners]))
    a, b, c = (surface.points[corners[:, k]] for k in range(3))
    flat = np.cross(b - a, c - a)
    normals = flat if surface.normals is None else np.einsum("nk,nki->ni", shares, surface.normals[corners])
    normals = normals / np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)
    # Seen from behind, a face is lit on the side that is seen.
    normals = np.where((flat @ camera.axes[2] < 0)[:, None], -normals, normals) @ camera.axes.T
    up = 0.5 + 0.5 * normals[:, 1:2]
    light = _GROUND + (_SKY - _GROUND) * up
    for direction, strength in _LIGHTS:
        light = light + strength * np.maximum(normals @ (direction / np.linalg.norm(direction)), 0)[:, None]
    return base[:, :3] * light, _alpha(base[:, 3], material)


def _alpha(values: Floats, material: Material) -> Floats:
    if material.alpha_mode == "BLEND":
        return np.clip(values, 0, 1)
    if material.alpha_mode == "MASK":
        return (values >= material.alpha_cutoff).astype(np.float64)
    return np.ones_like(values)


def sample(texture: NDArray[np.float32], uv: Floats) -> Floats:
    """Bilinear samples (N, 4) of a texture (H, W, 4) that repeats, at (N, 2); (0, 0) is its first corner."""
    height, width = texture.shape[:2]
    x, y = uv[:, 0] * width - 0.5, uv[:, 1] * height - 0.5
    left, top = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
    right_share, bottom_share = (x - left)[:, None], (y - top)[:, None]
    columns, rows = (left % width, (left + 1) % width), (top % height, (top + 1) % height)
    upper = texture[rows[0], columns[0]] * (1 - right_share) + texture[rows[0], columns[1]] * right_share
    lower = texture[rows[1], columns[0]] * (1 - right_share) + texture[rows[1], columns[1]] * right_share
    return upper * (1 - bottom_share) + lower * bottom_share
