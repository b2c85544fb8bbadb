"""Renders a rig as a PNG: three views of its skeleton over its mesh."""

from __future__ import annotations

import colorsys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.mesh import Mesh
from data.rig import Rig

# (title, elevation, azimuth) in degrees, with y up.
_VIEWS = (("front", 0, 0), ("side", 0, 90), ("oblique", 25, 40))
_MAX_FACES_DRAWN = 20_000
_GOLDEN_ANGLE = 137.508 / 360


def draw_rig(mesh: Mesh, rig: Rig, path: Path) -> None:
    """Write a PNG: three views of the mesh, coloured by the bone of each vertex's largest weight.

    Of more than 20,000 faces an even subset is drawn. Written under a temporary name, then renamed.
    """
    # Imported here: takes half a second, and a run draws its only picture at its end.
    from matplotlib.figure import Figure
    from mpl_toolkits.mplot3d.art3d import Poly3DCollection

    figure = Figure(figsize=(11, 4.3), dpi=110)
    faces = mesh.faces[:: -(-len(mesh.faces) // _MAX_FACES_DRAWN)]
    # In glTF y is up and +z faces the viewer; in matplotlib the third axis is up, so plot (z, x, y).
    vertices = mesh.vertices[:, [2, 0, 1]]
    joints = rig.joints[:, [2, 0, 1]]
    owner = rig.weights[faces].sum(axis=1).argmax(axis=1)
    normals = np.cross(
        vertices[faces[:, 1]] - vertices[faces[:, 0]], vertices[faces[:, 2]] - vertices[faces[:, 0]]
    )
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    light = np.abs(normals / np.maximum(lengths, 1e-12)) @ np.array([0.6, 0.3, 0.75])
    shaded = bone_colours(len(joints))[owner] * np.clip(0.45 + 0.55 * light, 0, 1)[:, None]
    colours = np.column_stack([shaded, np.full(len(shaded), 0.35)])
    for place, (title, elevation, azimuth) in enumerate(_VIEWS):
        left, width = place / len(_VIEWS), 1 / len(_VIEWS)
        figure.text(left + width / 2, 0.885, title, ha="center", fontsize=9)
        # Draw in call order, so that the skeleton lies over the mesh.
        axes: Any = figure.add_axes((left, 0.0, width, 0.87), projection="3d", computed_zorder=False)
        axes.add_collection3d(
            Poly3DCollection(vertices[faces], facecolors=colours, edgecolors="none", zorder=1)
        )
        for joint, parent in enumerate(rig.parents):
            if parent >= 0:
                line = joints[[parent, joint]]
                axes.plot(line[:, 0], line[:, 1], line[:, 2], color="black", linewidth=1.6, zorder=2)
        axes.scatter(
            joints[:, 0], joints[:, 1], joints[:, 2], color="crimson", s=14, depthshade=False, zorder=3
        )
        root = joints[:1]
        axes.scatter(root[:, 0], root[:, 1], root[:, 2], color="gold", edgecolors="black", s=44, zorder=4)
        axes.view_init(elev=elevation, azim=azimuth)
        low, high = vertices.min(axis=0), vertices.max(axis=0)
        half = (high - low).max() / 2
        for set_limit, centre in zip(
            (axes.set_xlim, axes.set_ylim, axes.set_zlim), (low + high) / 2, strict=True
        ):
            set_limit(centre - half, centre + half)
        axes.set_box_aspect((1, 1, 1), zoom=1.4)
        axes.set_axis_off()
    figure.suptitle(f"{mesh.name}: {len(joints)} joints", fontsize=11, y=0.99)
    partial = path.with_name(f".{path.name}.partial")
    figure.savefig(partial, format="png")
    partial.replace(path)


def bone_colours(count: int) -> NDArray[np.float64]:
    """sRGB (J, 3) of J bones, as in the 3D viewer: hues a golden angle apart, so neighbours differ."""
    hues = [(joint * _GOLDEN_ANGLE + 205 / 360) % 1 for joint in range(count)]
    lights = [0.6 if joint % 2 else 0.5 for joint in range(count)]
    return np.array([colorsys.hls_to_rgb(hue, light, 0.62) for hue, light in zip(hues, lights, strict=True)])
