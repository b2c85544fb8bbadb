"""`python -m rewards.explain RIGGED.glb --out DIR`: plots how a rig earns each reward.

Writes occupancy.png, coverage.png, containment.png, stretch.png and scores.json, for any rigged GLB.
"""

import argparse
import io
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from data.gltf.skinned import read_skinned_glb
from data.mesh import Mesh, MeshError
from data.rig import Rig
from rewards.containment import bone_points
from rewards.errors import RewardError
from rewards.lbs import linear_blend_skinning, skinning_matrices
from rewards.occupancy import OccupancyGrid, build_occupancy
from rewards.recorded_poses import PoseFileError
from rewards.score import RewardSettings, RigScore, prepare_scoring_mesh, score_rig
from rewards.scoring_mesh import ScoringMesh
from rewards.smoothness import LENGTH_EPSILON, edge_stretch

# (name, horizontal axis, vertical axis, axis towards the viewer and its sign); glTF: y up, +z forward
VIEWS = (("front", 0, 1, 2, 1), ("side", 2, 1, 0, -1))
BONE, INSIDE, OUTSIDE = "#202020", "#1a7f37", "#d1242f"


def explain(mesh: Mesh, rig: Rig, out: Path, settings: RewardSettings, seed: int = 0) -> RigScore:
    """Score a rig, draw why, and write both to `out`.

    Args:
        mesh: V vertices, mesh frame.
        rig: weights (V, J) at the mesh's vertices.
        out: folder for the pictures and scores.json; created if missing.
        settings: the rewards' parameters.
        seed: of the poses.

    Raises:
        RewardError: the mesh or the rig cannot be scored.
    """
    scoring = prepare_scoring_mesh(mesh.vertices, mesh.faces, settings, mesh.name)
    weights = rig.weights[scoring.source]
    rotations = settings.rotations(len(rig.joints), seed, rig.parents, rig.names)
    score = score_rig(scoring, rig.joints, rig.parents, weights, rotations, settings)
    out.mkdir(parents=True, exist_ok=True)
    _save(_draw_occupancy(mesh, rig, scoring.grid, settings), out / "occupancy.png")
    _save(_draw_coverage(mesh, rig, scoring.grid, settings, score), out / "coverage.png")
    _save(_draw_containment(mesh, rig, scoring.grid, settings, score), out / "containment.png")
    _save(_draw_stretch(rig, scoring, weights, rotations, score), out / "stretch.png")
    report = {"rewards": score.rewards, "diagnostics": score.diagnostics}
    (out / "scores.json").write_text(json.dumps(report, indent=1) + "\n")
    return score


def _save(figure: Figure, path: Path) -> None:
    """Save as a PNG with 256 colours: half the size, for pictures in documents."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    Image.open(buffer).convert("RGB").quantize(256, method=Image.Quantize.MAXCOVERAGE).save(
        path, optimize=True
    )


def _two_views(points: NDArray[np.floating]) -> tuple[Figure, Any]:
    """A figure with a front and a side panel at the same scale, framed to points (N, 3)."""
    figure = Figure(figsize=(9, 4.6), dpi=100, layout="constrained")
    extent = np.maximum(np.ptp(points, axis=0), 0.2 * np.ptp(points, axis=0).max())
    panels = figure.subplots(1, len(VIEWS), width_ratios=[extent[view[1]] for view in VIEWS])
    for panel, (name, across, up, _, _) in zip(panels, VIEWS, strict=True):
        low, high = points[:, [across, up]].min(axis=0), points[:, [across, up]].max(axis=0)
        margin = 0.04 * float(extent.max())
        panel.set_xlim(low[0] - margin, high[0] + margin)
        panel.set_ylim(low[1] - margin, high[1] + margin)
        panel.set_aspect("equal")
        panel.set_title(name, fontsize=10)
        panel.axis("off")
    return figure, panels


def _draw_occupancy(mesh: Mesh, rig: Rig, grid: OccupancyGrid, settings: RewardSettings) -> Figure:
    """Three slices of free, interior and surface cells, with joints within 3 cells of the slice as dots."""
    surface = build_occupancy(mesh.vertices, mesh.faces, settings.resolution, "surface").occupied
    layers = grid.occupied.astype(np.int8) + surface
    joints = (rig.joints - grid.origin) / grid.cell
    figure = Figure(figsize=(9, 4.2), dpi=100, layout="constrained")
    colours = ListedColormap(["#ffffff", "#9ecae1", "#2171b5"])
    for axis, panel in enumerate(figure.subplots(1, 3)):
        across, up = [a for a in range(3) if a != axis]
        if axis == 0:
            across, up = 2, 1
        elif axis == 1:
            across, up = 0, 2
        # The fullest slice: the middle one may fall between a creature's legs.
        middle = int(grid.occupied.sum(axis=(across, up)).argmax())
        picture = np.moveaxis(layers, (up, across, axis), (0, 1, 2))[:, :, middle]
        panel.imshow(picture, origin="lower", cmap=colours, vmin=0, vmax=2, interpolation="nearest")
        near = np.abs(joints[:, axis] - middle - 0.5) < 3
        panel.plot(joints[near, across] - 0.5, joints[near, up] - 0.5, "o", color=OUTSIDE, ms=4)
        panel.set_title(f"slice {'xyz'[axis]} = {middle} of {layers.shape[axis]}", fontsize=10)
        panel.set_xlabel(f"{'xyz'[across]} (cells)", fontsize=8)
        panel.set_ylabel(f"{'xyz'[up]} (cells)", fontsize=8)
        panel.tick_params(labelsize=7)
    figure.suptitle(
        f"{mesh.name}: {grid.count:,} of {grid.occupied.size:,} cells occupied "
        f"({int(surface.sum()):,} surface, the rest {settings.interior}); red: joints near the slice",
        fontsize=10,
    )
    return figure


def _draw_coverage(
    mesh: Mesh, rig: Rig, grid: OccupancyGrid, settings: RewardSettings, score: RigScore
) -> Figure:
    """The mesh, with each face coloured by exp(-alpha · distance to the nearest joint)."""
    middles = mesh.vertices[mesh.faces].mean(axis=1)
    distance = np.min([np.linalg.norm(middles - joint, axis=1) for joint in rig.joints], axis=0)
    if settings.distance_unit == "cells":
        distance = distance / grid.cell
    near = np.exp(-settings.alpha * distance)
    figure, panels = _two_views(mesh.vertices)
    drawn: Any = None
    for panel, view in zip(panels, VIEWS, strict=True):
        drawn = _faces(panel, mesh.vertices, mesh.faces, view, near)
        _bones(panel, rig, view)
    figure.colorbar(drawn, ax=panels, shrink=0.8, label="exp(−α · distance to nearest joint)")
    figure.suptitle(f"{mesh.name}: volumetric joint coverage {score.coverage:.3f}", fontsize=11)
    return figure


def _draw_containment(
    mesh: Mesh, rig: Rig, grid: OccupancyGrid, settings: RewardSettings, score: RigScore
) -> Figure:
    """The bones' sample points over a pale mesh: green in occupied cells, red outside."""
    points = bone_points(rig.joints, rig.parents, settings.samples_per_bone).reshape(-1, 3)
    inside = grid.contains(points)
    figure, panels = _two_views(mesh.vertices)
    for panel, view in zip(panels, VIEWS, strict=True):
        _faces(panel, mesh.vertices, mesh.faces, view, None)
        _bones(panel, rig, view, marker="")
        _, across, up, _, _ = view
        for chosen, colour in ((inside, INSIDE), (~inside, OUTSIDE)):
            panel.plot(points[chosen, across], points[chosen, up], ".", color=colour, ms=5, zorder=3)
    figure.suptitle(
        f"{mesh.name}: bone containment {score.containment:.3f} "
        f"({int(inside.sum())} of {len(points)} points inside)",
        fontsize=11,
    )
    return figure


def _draw_stretch(
    rig: Rig,
    scoring: ScoringMesh,
    weights: NDArray[np.float32],
    rotations: NDArray[np.float64],
    score: RigScore,
) -> Figure:
    """The edges in the pose with the largest stretch, coloured by stretch, with the worst edge circled."""
    largest, _, worst = edge_stretch(
        scoring.vertices, scoring.edges, rig.joints, rig.parents, weights, rotations
    )
    pose = int(largest.argmax())
    matrices = skinning_matrices(rig.joints, rig.parents, rotations)
    posed = linear_blend_skinning(scoring.vertices, weights, matrices)[pose]
    rest = scoring.vertices.astype(np.float64)
    first, second = scoring.edges.T
    length = np.linalg.norm(rest[first] - rest[second], axis=1) + LENGTH_EPSILON
    stretch = np.maximum(1, np.linalg.norm(posed[first] - posed[second], axis=1) / length)
    figure, panels = _two_views(posed)
    order = np.argsort(stretch)  # the most stretched on top
    drawn: Any = None
    for panel, (_, across, up, _, _) in zip(panels, VIEWS, strict=True):
        flat = posed[:, [across, up]]
        drawn = LineCollection(
            list(flat[scoring.edges[order]]), array=stretch[order], cmap="turbo", linewidths=0.8
        )
        drawn.set_clim(1, max(1.5, float(np.quantile(stretch, 0.999)) if len(stretch) else 1.5))
        panel.add_collection(drawn)
        if worst[pose] >= 0:
            x, y = flat[scoring.edges[worst[pose]]].mean(axis=0)
            panel.plot(x, y, "o", ms=14, mfc="none", mec="black", mew=1.5)
    figure.colorbar(drawn, ax=panels, shrink=0.8, label="posed / rest length", extend="max")
    figure.suptitle(
        f"{scoring.name}: deformation smoothness {score.smoothness:.3f}; "
        f"pose {pose + 1} of {len(rotations)}, worst edge stretched {largest[pose]:.2f} times (circled)",
        fontsize=11,
    )
    return figure


def _faces(
    panel: Any,
    vertices: NDArray[np.floating],
    faces: NDArray[np.int64],
    view: tuple[str, int, int, int, int],
    values: NDArray[np.floating] | None,
) -> PolyCollection:
    """Draw the faces back to front, coloured by values (F,) in [0, 1], or pale if there are none."""
    _, across, up, depth, sign = view
    order = np.argsort(sign * vertices[faces].mean(axis=1)[:, depth])
    flat = vertices[:, [across, up]]
    polygons = list(flat[faces[order]])
    if values is None:
        drawn = PolyCollection(polygons, facecolors="#e8eef4", edgecolors="#c4d0dc", linewidths=0.2)
    else:
        drawn = PolyCollection(
            polygons, array=values[order], cmap="viridis", edgecolors="face", linewidths=0.2
        )
        drawn.set_clim(0, 1)
    panel.add_collection(drawn)
    return drawn


def _bones(panel: Any, rig: Rig, view: tuple[str, int, int, int, int], marker: str = "o") -> None:
    _, across, up, _, _ = view
    flat = rig.joints[:, [across, up]]
    children = np.flatnonzero(rig.parents >= 0)
    bones = [flat[[child, rig.parents[child]]] for child in children]
    panel.add_collection(LineCollection(bones, colors=BONE, linewidths=1.0, zorder=2))
    panel.plot(flat[:, 0], flat[:, 1], linestyle="", marker=marker, color=BONE, ms=3, zorder=2)


def main(arguments: list[str] | None = None) -> int:
    """Explain one file; exit status 2 if it cannot be read or scored."""
    parser = argparse.ArgumentParser(
        prog="python -m rewards.explain", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("rigged", type=Path, help="a rigged GLB file")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures")
    parser.add_argument("--seed", type=int, default=0, help="seed of the poses")
    parser.add_argument("--poses", help="NPZ file of recorded poses to use instead of random ones")
    options = parser.parse_args(arguments)
    matplotlib.use("Agg")
    try:
        settings = RewardSettings(pose_file=options.poses)
        score = explain(*read_skinned_glb(options.rigged), options.out, settings, options.seed)
    except RewardError as error:
        print(f"error: {options.rigged}: {error}", file=sys.stderr)
        return 2
    except (MeshError, PoseFileError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, value in (score.rewards | score.diagnostics).items():
        print(f"{name:<20} {value:.4f}")
    print(f"wrote the pictures to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
