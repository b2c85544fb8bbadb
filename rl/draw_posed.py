"""`python -m rl.draw_posed RIGGED.glb`: a picture of a rigged file: as read, with its rig, and in a pose."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.mesh import MeshError
from rewards.poses import random_rotations, rotation_matrices
from rl.render.panels import on_background, panel_camera, save_png, side_by_side, with_skeleton
from rl.render.rasterise import render, view_axes
from rl.render.textured_scene import Scene, Skeleton, read_scene

Floats = NDArray[np.float64]

_PANEL_WIDTH = 400


def draw_posed(
    rigged: Scene,
    before: Scene,
    turns: Mapping[int, Floats],
    view: tuple[float, float] = (30.0, 12.0),
    titles: tuple[str, str, str] | None = None,
    credit: str = "",
) -> Image.Image:
    """Three panels, seen by one camera: `before`, `rigged` with its skeleton drawn over it, and its pose.

    Args:
        rigged: the file that is posed.
        before: the file that it was made from, in its node pose.
        turns: rotations (3, 3) about joints along the world's axes, by place in `rigged.skeleton`.
        view: degrees by which the camera is turned to the right of the front, and raised.
        titles: of the panels.
        credit: line at the foot of the picture.
    """
    rest, joints = rigged.posed()
    posed, _ = rigged.posed(turns)
    first, _ = before.posed()
    clouds = [surface.points for surfaces in (first, rest, posed) for surface in surfaces]
    camera = panel_camera(clouds, view_axes(*view), _PANEL_WIDTH)
    panels = [
        on_background(render(first, camera)),
        with_skeleton(render(rest, camera), joints, rigged.skeleton.parents, camera),
        on_background(render(posed, camera)),
    ]
    return side_by_side(panels, titles or ("as read", f"rigged: {len(joints)} joints", "posed"), credit)


def read_turns(skeleton: Skeleton, texts: Sequence[str]) -> dict[int, Floats]:
    """Rotations from "JOINT=X,Y,Z": a joint's name or number, and a rotation vector in degrees.

    Raises MeshError naming the text.
    """
    turns: dict[int, Floats] = {}
    for text in texts:
        name, _, vector = text.rpartition("=")
        places = [place for place, known in enumerate(skeleton.names) if name == known]
        if not places and name.isdigit() and int(name) < len(skeleton.names):
            places = [int(name)]
        try:
            degrees = np.array([float(part) for part in vector.split(",")])
        except ValueError:
            degrees = np.zeros(0)
        if not places or degrees.shape != (3,) or not np.isfinite(degrees).all():
            known = ", ".join(f"{place} {name}" for place, name in enumerate(skeleton.names))
            raise MeshError(f"--turn {text}: write JOINT=X,Y,Z in degrees, with one of the joints {known}")
        turns[places[0]] = rotation_matrices(np.deg2rad(degrees)[None])[0]
    return turns


def main(argv: Sequence[str] | None = None) -> int:
    """The command. Returns exit code 0: done, 1: I/O error, 2: a file or argument that cannot be used."""
    parser = argparse.ArgumentParser(prog="python -m rl.draw_posed", description=__doc__)
    parser.add_argument("rigged", metavar="RIGGED.glb", help="the rigged file")
    parser.add_argument("--before", metavar="FILE.glb", help="left panel (default: the rigged file)")
    parser.add_argument("--out", metavar="PNG", required=True, help="the picture to write")
    parser.add_argument(
        "--turn",
        metavar="JOINT=X,Y,Z",
        action="append",
        default=[],
        help="turn a joint (name or number) about the world's axes, degrees; default: all but roots, random",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of random turns (default: 0)")
    parser.add_argument("--degrees", type=float, default=25.0, help="largest random turn (default: 25)")
    parser.add_argument(
        "--view", type=float, nargs=2, default=(30.0, 12.0), metavar=("YAW", "PITCH"), help="degrees"
    )
    parser.add_argument("--credit", default="", help="line at the foot: author and licence")
    arguments = parser.parse_args(argv)
    try:
        rigged = read_scene(arguments.rigged)
        skeleton = rigged.skeleton
        if not len(skeleton.nodes):
            raise MeshError(f"{arguments.rigged}: the file has no skin; rig it with `python -m rl.rig`")
        turns = read_turns(skeleton, arguments.turn)
        if not turns:
            drawn = random_rotations(1, len(skeleton.nodes), arguments.degrees, arguments.seed)[0]
            turns = {joint: drawn[joint] for joint in np.flatnonzero(skeleton.parents >= 0).tolist()}
        before = rigged if arguments.before is None else read_scene(arguments.before)
        picture = draw_posed(rigged, before, turns, tuple(arguments.view), credit=arguments.credit)
        save_png(picture, Path(arguments.out))
    except MeshError as problem:
        print(f"error: {problem}", file=sys.stderr)
        return 2
    except OSError as problem:
        print(f"failed: {problem}; fix the cause and run the command again", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
