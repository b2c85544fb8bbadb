"""Draws a rig as a sheet: at rest with its skeleton, its skinning weights as colours, and three poses."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.command_line import RunFailedError
from data.gltf.influences import as_stored
from data.mesh import Mesh
from data.rig import Rig
from data.sets.dataset import MeshSample
from policy.bundle import RigPolicy
from rewards.lbs import linear_blend_skinning, skinning_matrices
from rewards.poses import pose_seed
from rewards.settings import RewardSettings
from rl.meshes import spread
from rl.pictures import bone_colours
from rl.recipe import Recipe, reward_settings
from rl.render.panels import on_background, panel_camera, save_png, side_by_side, with_skeleton
from rl.render.rasterise import render, view_axes
from rl.render.textured_scene import Material, Surface, to_linear
from rl.rollout_store import file_stem
from rl.shown_rigs import shown_rigs

POSES = 3
SHEETS_FOLDER = "sheets"

_PANEL_WIDTH = 300
_VIEW = (30.0, 12.0)  # degrees to the right of the front, and up
_CLAY = np.array([0.62, 0.65, 0.68])

Floats = NDArray[np.float64]


def posed_sheet(mesh: Mesh, rig: Rig, rotations: Floats, title: str = "") -> Image.Image:
    """Panels: the skeleton over the mesh at rest, the skin in its bones' colours, and the poses in them.

    The skin is the one that a GLB stores and every viewer shows: the four largest weights of each vertex.

    Args:
        mesh: in the mesh frame, or any other with y up and +z to the front.
        rig: with weights (V, J) at its vertices, in the same frame.
        rotations: (P, J, 3, 3) local rotations of the joints, a pose each.
        title: line at the foot of the picture.
    """
    rest = mesh.vertices.astype(np.float64)
    matrices = skinning_matrices(rig.joints, rig.parents, rotations)
    weights = as_stored(rig.weights)
    posed = list(linear_blend_skinning(rest, weights, matrices))
    # A vertex without weight keeps the colour of the bare mesh, though files bind it to the root.
    bound = rig.weights.sum(axis=1, keepdims=True) > 0
    skin = np.where(bound, weights @ to_linear(bone_colours(len(rig.joints))), to_linear(_CLAY))
    camera = panel_camera([rest, *posed], view_axes(*_VIEW), _PANEL_WIDTH)

    def surface(points: Floats, colours: Floats) -> list[Surface]:
        opaque = np.column_stack([colours, np.ones(len(points))])
        flat = Material(np.ones(4), double_sided=True)
        return [Surface(points, mesh.faces, None, np.zeros((len(points), 2)), opaque, flat)]

    bare = render(surface(rest, np.tile(to_linear(_CLAY), (len(rest), 1))), camera)
    panels = [
        with_skeleton(bare, rig.joints.astype(np.float64), rig.parents, camera),
        *(on_background(render(surface(points, skin), camera)) for points in (rest, *posed)),
    ]
    titles = [f"{len(rig.joints)} joints", "skin", *(f"pose {place + 1}" for place in range(len(posed)))]
    return side_by_side(panels, titles, title)


def sheet_rotations(settings: RewardSettings, rig: Rig, seed: int) -> Floats:
    """The first three poses (P, J, 3, 3) in which the smoothness reward scores a rig with a seed."""
    return settings.rotations(len(rig.joints), seed, rig.parents)[:POSES]


def write_sheets(
    policy: RigPolicy, samples: Sequence[MeshSample], recipe: Recipe, folder: Path, label: str
) -> list[Path]:
    """Draw the first evaluated rig of `eval.sheets` of the held-out meshes; return the pictures' paths.

    Args:
        policy: of the evaluation.
        samples: all meshes that were evaluated, in order.
        recipe: of the evaluation.
        folder: where the pictures go.
        label: of the policy, part of the files' names.

    Raises:
        RunFailedError: no mesh has a complete rig.
    """
    places = spread(len(samples), recipe.eval.sheets)
    chosen = [samples[place] for place in places]
    settings = reward_settings(recipe)
    paths, reasons = [], []
    for sample, shown in zip(chosen, shown_rigs(policy, chosen, places, recipe, label), strict=True):
        if isinstance(shown, str):
            reasons.append(f"{sample.name}: {shown}")
            continue
        seed = pose_seed(recipe.eval.seed, sample.name, 0)
        rotations = sheet_rotations(settings, shown.rig, seed)
        path = folder / f"{file_stem(sample.name)}_{label}.png"
        save_png(posed_sheet(sample.mesh, shown.rig, rotations, _caption(sample.name, shown.total)), path)
        paths.append(path)
    if not paths:
        raise RunFailedError(f"no sheet could be drawn ({reasons[0]}); evaluate a policy that completes rigs")
    return paths


def _caption(name: str, total: float) -> str:
    return f"{name}: total reward {total:.3f}"
