"""`python -m rl.draw_posed RIGGED.glb`: a picture of a rigged file: as read, with its rig, and in a pose."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from data.mesh import MeshError
from rewards.poses import random_rotations, rotation_matrices
from rl.render.rasterise import Camera, framed, render, view_axes
from rl.render.textured_scene import Scene, Skeleton, read_scene

Floats = NDArray[np.float64]

# Each pixel of the picture is the mean of this many pixels in each direction.
_SUPERSAMPLING = 3
_PANEL_WIDTH = 400
_PANEL_HEIGHTS = (260, 520)  # as the pose needs it
_TITLE, _CREDIT = 34, 22
_BACKGROUND = np.array([0.94, 0.95, 0.965])
_INK = (60, 60, 60)
_BONE, _JOINT, _EDGE = (255, 196, 61), (214, 40, 57), (40, 40, 40)


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
    axes = view_axes(*view)
    extent = np.ptp(np.concatenate(clouds) @ axes[:2].T, axis=0)
    panel = (_PANEL_WIDTH, int(np.clip(_PANEL_WIDTH * extent[1] / max(extent[0], 1e-9), *_PANEL_HEIGHTS)))
    camera = framed(clouds, axes, _SUPERSAMPLING * panel[0], _SUPERSAMPLING * panel[1])
    titles = titles or ("as read", f"rigged: {len(joints)} joints", "posed")
    panels = [_on_background(render(first, camera))]
    panels.append(_with_skeleton(render(rest, camera), joints, rigged.skeleton, camera))
    panels.append(_on_background(render(posed, camera)))
    foot = _CREDIT if credit else 0
    size = (3 * panel[0], _TITLE + panel[1] + foot)
    picture = Image.new("RGB", size, tuple(np.round(_BACKGROUND * 255).astype(int)))
    draw = ImageDraw.Draw(picture)
    for place, (shown, title) in enumerate(zip(panels, titles, strict=True)):
        picture.paste(shown.resize(panel, Image.Resampling.BOX), (place * panel[0], _TITLE))
        middle = (place * panel[0] + panel[0] // 2, _TITLE // 2 + 4)
        draw.text(middle, title, fill=_INK, font=_font(17), anchor="mm")
    if credit:
        draw.text((10, picture.height - foot // 2 - 2), credit, fill=_INK, font=_font(12), anchor="lm")
    return picture


def _on_background(pixels: Floats) -> Image.Image:
    alpha = pixels[..., 3:]
    return _image(pixels[..., :3] * alpha + _BACKGROUND * (1 - alpha))


def _with_skeleton(pixels: Floats, joints: Floats, skeleton: Skeleton, camera: Camera) -> Image.Image:
    """The picture, faded, with bones as darts from parent to child and joints as discs, far ones first."""
    alpha = pixels[..., 3:] * 0.45
    image = _image(pixels[..., :3] * alpha + _BACKGROUND * (1 - alpha))
    draw = ImageDraw.Draw(image)
    places = camera.project(joints)
    radius, line = 0.0085 * camera.height, max(1, camera.height // 700)
    for joint in np.argsort(-places[:, 2], kind="stable"):
        tip, parent = places[joint, :2], skeleton.parents[joint]
        if parent >= 0:
            base = places[parent, :2]
            along = tip - base
            across = np.array([-along[1], along[0]]) / max(np.linalg.norm(along), 1e-9) * radius * 0.9
            wide = base + 0.2 * along
            outline = [tuple(corner) for corner in (base, wide + across, tip, wide - across)]
            draw.polygon(outline, fill=_BONE, outline=_EDGE, width=line)
    for joint in np.argsort(-places[:, 2], kind="stable"):
        x, y = places[joint, :2]
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_JOINT, outline=_EDGE, width=line)
    return image


def _image(colours: Floats) -> Image.Image:
    return Image.fromarray(np.round(colours * 255).astype(np.uint8))


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def save_png(picture: Image.Image, path: Path) -> None:
    """Write a PNG, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    picture.save(partial, format="png", optimize=True)
    partial.replace(path)


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
