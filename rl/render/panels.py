"""Panels of a picture: a rendering on its background, a skeleton drawn over it, and panels side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from rl.render.rasterise import Camera, framed

Floats = NDArray[np.float64]

# Each pixel of the picture is the mean of this many pixels in each direction.
_SUPERSAMPLING = 3
_HEIGHTS = (0.65, 1.3)  # of a panel, as a share of its width, as the pose needs it
_TITLE, _CREDIT = 34, 22
_BACKGROUND = np.array([0.94, 0.95, 0.965])
_INK = (60, 60, 60)
_BONE, _JOINT, _EDGE = (255, 196, 61), (214, 40, 57), (40, 40, 40)


def panel_camera(clouds: Sequence[Floats], axes: Floats, width: int) -> Camera:
    """The camera of a panel of this width in pixels that shows all points of `clouds` (each (N, 3))."""
    extent = np.ptp(np.concatenate(clouds) @ axes[:2].T, axis=0)
    low, high = (round(width * share) for share in _HEIGHTS)
    height = int(np.clip(width * extent[1] / max(extent[0], 1e-9), low, high))
    return framed(clouds, axes, _SUPERSAMPLING * width, _SUPERSAMPLING * height)


def side_by_side(panels: Sequence[Image.Image], titles: Sequence[str], credit: str = "") -> Image.Image:
    """Panels of one camera in a row, each below its title; `credit` is a line at the foot."""
    width, height = (side // _SUPERSAMPLING for side in panels[0].size)
    foot = _CREDIT if credit else 0
    size = (len(panels) * width, _TITLE + height + foot)
    picture = Image.new("RGB", size, tuple(np.round(_BACKGROUND * 255).astype(int)))
    draw = ImageDraw.Draw(picture)
    for place, (shown, title) in enumerate(zip(panels, titles, strict=True)):
        picture.paste(shown.resize((width, height), Image.Resampling.BOX), (place * width, _TITLE))
        middle = (place * width + width // 2, _TITLE // 2 + 4)
        draw.text(middle, title, fill=_INK, font=_font(17), anchor="mm")
    if credit:
        draw.text((10, picture.height - foot // 2 - 2), credit, fill=_INK, font=_font(12), anchor="lm")
    return picture


def on_background(pixels: Floats) -> Image.Image:
    """A rendering (H, W, 4) of `render` as an opaque picture."""
    alpha = pixels[..., 3:]
    return _image(pixels[..., :3] * alpha + _BACKGROUND * (1 - alpha))


def with_skeleton(pixels: Floats, joints: Floats, parents: NDArray[np.int64], camera: Camera) -> Image.Image:
    """The rendering, faded, with bones as darts from parent to child and joints as discs, far ones first.

    `joints` (J, 3), world frame; `parents` (J,), -1 for a root.
    """
    alpha = pixels[..., 3:] * 0.45
    image = _image(pixels[..., :3] * alpha + _BACKGROUND * (1 - alpha))
    draw = ImageDraw.Draw(image)
    places = camera.project(joints)
    radius, line = 0.0085 * camera.height, max(1, camera.height // 700)
    for joint in np.argsort(-places[:, 2], kind="stable"):
        tip, parent = places[joint, :2], parents[joint]
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
