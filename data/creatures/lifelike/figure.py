"""The builder of lifelike creatures: joints and solids in, one mesh with its rig out, in many styles."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from data.creatures.body import Body, X
from data.creatures.lifelike.blended_surfaces import (
    ALONG,
    CAP,
    DEEP,
    END_RADIUS,
    FLUSH,
    LENGTH,
    NORMAL,
    RADIUS,
    SQUARE,
    WIDE,
    blended_mesh,
    hidden_vertices,
    solid,
    solid_weights,
)
from data.creatures.swept_surfaces import SweptSurface, tessellate
from data.mesh import Mesh, normalise
from data.rig import Rig, depth_first

Floats = NDArray[np.float64]

# Vertices that the grid of a blended mesh is made for, at most.
_MOST_VERTICES = 2600


@dataclass(frozen=True)
class Finish:
    """How a creature's solids become a mesh.

    `build`: "one" melts all flesh into one surface, "parts" makes a surface of every part (torso, head, each
    limb), "boxes" a prism or ellipsoid of every solid. `softness`: width of the weight transitions in radii.
    `blend`: how far solids melt into each other, in units of the creature's height. `cull`: drop faces hidden
    inside other surfaces. `square`: least squareness of all solids. `corners`: of the prisms. `vertices`:
    about how many the mesh has.
    """

    build: str
    softness: float
    blend: float
    cull: bool
    square: int
    corners: int
    vertices: int


@dataclass(frozen=True, eq=False)
class _Solid:
    row: Floats
    joint: int
    part: str
    flesh: bool


class Figure(Body):
    """A lifelike creature under construction, about 1 unit high. y is up; it faces +z, its left is +x."""

    def __init__(self, rng: np.random.Generator) -> None:
        super().__init__(rng)
        self.solids: list[_Solid] = []
        build = ("one", "parts", "boxes")[int(np.searchsorted([0.58, 0.92], rng.random()))]
        soft = (0.1, 2.0, 4.0, 7.0)[int(np.searchsorted([0.15, 0.35, 0.75], rng.random()))]
        self.finish = Finish(
            build=build,
            softness=soft if build == "one" else min(soft, 5.0),
            blend=self.uniform(0.015, 0.06),
            cull=self.chance(0.6),
            square=self.pick(1, 2) if self.chance(0.2) else 0,
            corners=(4, 4, 5, 6, 8)[self.pick(0, 4)],
            vertices=int(np.exp(self.uniform(np.log(350), np.log(2600)))),
        )

    def rounded(self) -> None:
        """Rule out prisms and box-like profiles: an animal's trunk would be a pile of discs."""
        build = "parts" if self.finish.build == "boxes" else self.finish.build
        self.finish = replace(self.finish, build=build, square=0)

    @property
    def crowded(self) -> bool:
        """Whether there are so many joints that clothes and the like get none of their own."""
        return len(self.joints) > 50

    def flesh(
        self,
        part: str,
        start: ArrayLike,
        end: ArrayLike,
        radii: tuple[float, float],
        joint: int,
        normal: ArrayLike = X,
        wide: tuple[float, float] = (1.0, 1.0),
        cap: float = 1.0,
        square: int = 0,
        worn: bool = False,
        flush: bool = False,
    ) -> None:
        """Add a tapered capsule of `part`, bound to `joint`; see `solid`. Worn things never melt in."""
        row = solid(
            np.asarray(start, float),
            np.asarray(end, float),
            radii,
            np.asarray(normal, float),
            (*wide, cap),
            square,
            flush,
        )
        self.solids.append(_Solid(row, joint, part, not worn))

    def ball(
        self,
        part: str,
        centre: ArrayLike,
        radii: tuple[float, float, float],
        joint: int,
        square: int = 0,
        worn: bool = False,
    ) -> None:
        """Add an ellipsoid or rounded box with half axes `radii` along x, y and z."""
        middle = np.asarray(centre, float)
        size = float(np.cbrt(radii[0] * radii[1] * radii[2]))
        stretch = (radii[0] / size, radii[2] / size, radii[1] / size)
        self.solids.append(
            _Solid(solid(middle, middle, (size, size), X, stretch, square), joint, part, not worn)
        )

    def mesh_and_rig(self, name: str) -> tuple[Mesh, Rig]:
        """The mesh (mesh frame) and its rig (depth-first order); joints that nothing follows are dropped."""
        count = len(self.joints)
        blocks = []
        sweeps = list(self.sweeps)
        if self.finish.build == "boxes":
            sweeps = [*(self._prism(one) for one in self.solids), *sweeps]
        elif self.solids:
            blocks.append(self._blended())
        if sweeps or self.patches:
            target = self.finish.vertices if self.finish.build == "boxes" else 300
            blocks.append(tessellate(sweeps, self.patches, count, target, 0, 4000))
        starts = np.cumsum([0, *(len(points) for points, _, _ in blocks)])
        vertices = np.concatenate([points for points, _, _ in blocks])
        faces = np.concatenate([each + start for (_, each, _), start in zip(blocks, starts, strict=False)])
        weights = np.concatenate([skin for _, _, skin in blocks])
        mesh = normalise(vertices, faces, name)
        joints = ((np.array(self.joints) - mesh.centre) * mesh.scale).astype(np.float32)
        return mesh, depth_first(_without_idle(joints, np.array(self.parents), weights, self.names))

    def _prism(self, one: _Solid) -> SweptSurface:
        row, corners = one.row, self.finish.corners
        length, along, normal = row[LENGTH], row[ALONG : ALONG + 3], row[NORMAL : NORMAL + 3]
        ends = np.stack([row[:3], row[:3] + length * along])
        radii = np.stack([row[RADIUS:WIDE] * row[WIDE], row[RADIUS:WIDE] * row[DEEP]], axis=1)
        boxy = corners == 4 or row[SQUARE] > 0 or length > 0
        if boxy:
            # Flat ends reach as far as round ones would, less the corners' share.
            reach = 0.8 * row[CAP] if length == 0 or row[SQUARE] > 0 else 0.35 * row[CAP]
            ends = ends + np.array([[-reach * row[RADIUS]], [reach * row[END_RADIUS]]]) * along
            if length == 0:
                radii = 0.9 * radii
            return SweptSurface(ends, radii, (one.joint,), normal, 0.0, corners=corners, cap_length=0.0)
        half = row[RADIUS] * row[CAP] * along
        poles = np.stack([row[:3] - half, row[:3] + half])
        return SweptSurface(poles, radii, (one.joint,), normal, 0.0, is_ellipsoid=True, corners=2 * corners)

    def _blended(self) -> tuple[Floats, NDArray[np.int64], Floats]:
        finish = self.finish
        whole = finish.build == "one"
        names = ["" if whole and one.flesh and "hand" not in one.part else one.part for one in self.solids]
        order = sorted(range(len(names)), key=lambda i: (names[i], not self.solids[i].row[FLUSH]))
        chosen = [self.solids[i] for i in order]
        rows = np.stack([one.row for one in chosen])
        rows[:, SQUARE] = np.maximum(rows[:, SQUARE], finish.square)
        owners = [names[i] for i in order]
        starts = np.array([0, *(i for i in range(1, len(owners)) if owners[i] != owners[i - 1]), len(owners)])
        mean = 0.5 * (rows[:, RADIUS] + rows[:, END_RADIUS])
        girth = 2 * np.pi * mean * np.sqrt(rows[:, WIDE] * rows[:, DEEP])
        area = girth * (rows[:, LENGTH] + 2 * mean * rows[:, CAP])
        areas = np.add.reduceat(area, starts[:-1])
        # Small pieces have finer meshes than large ones: a piece's share grows with the square root of its
        # area. No piece is coarser than its thinnest solid.
        share = np.sqrt(areas) / np.sqrt(areas).sum()
        cells = np.sqrt(areas / np.maximum(finish.vertices * share, 24))
        least = np.minimum(rows[:, RADIUS], rows[:, END_RADIUS]) * np.minimum(rows[:, WIDE], rows[:, DEEP])
        thin = np.minimum.reduceat(least, starts[:-1])
        cells = np.clip(cells, 0.35 * thin, np.maximum(1.3 * thin, 0.7 * cells))
        cells *= max(1.0, np.sqrt((areas / cells**2).sum() / _MOST_VERTICES))
        each = np.repeat(cells, np.diff(starts))
        _thicken(rows, 0.7 * each)
        blends = np.array([finish.blend if owners[i] == "" else 0.6 * finish.blend for i in starts[:-1]])
        blends = np.minimum(blends, 1.5 * np.sqrt(areas))
        joints = np.array([one.joint for one in chosen])
        points, faces, owner = blended_mesh(rows, starts, cells, blends)
        softness = np.full(len(blends), finish.softness)
        x = np.array([position[0] for position in self.joints])
        sides = np.where(np.abs(x) < 1e-6, 0, np.sign(x)).astype(np.int64)
        weights = solid_weights(points, owner, rows, starts, joints, sides, softness)
        if finish.cull:
            hidden = hidden_vertices(points, owner, rows, starts, 0.004)
            faces = faces[~hidden[faces].all(axis=1)]
        return _compact(points, faces, weights)


def _thicken(rows: Floats, least: Floats) -> None:
    """Widen solids, in place, to half axes of at least `least` (N,) across: grids lose thinner ones."""
    widest = np.maximum(rows[:, WIDE], rows[:, DEEP])
    rows[:, RADIUS:WIDE] = np.maximum(rows[:, RADIUS:WIDE], (least / widest)[:, None])
    needed = least / np.minimum(rows[:, RADIUS], rows[:, END_RADIUS])
    rows[:, WIDE:CAP] = np.maximum(rows[:, WIDE:CAP], needed[:, None])


def _compact(
    points: Floats, faces: NDArray[np.int64], weights: Floats
) -> tuple[Floats, NDArray[np.int64], Floats]:
    """Without degenerate faces and unused vertices."""
    a, b, c = (points[faces[:, k]] for k in range(3))
    doubled = np.cross(b - a, c - a)
    faces = faces[(doubled**2).sum(axis=1) > 1e-16]
    used = np.zeros(len(points), dtype=bool)
    used[faces] = True
    return points[used], (np.cumsum(used) - 1)[faces], weights[used]


def _without_idle(
    joints: NDArray[np.float32], parents: NDArray[np.int64], weights: Floats, names: list[str]
) -> Rig:
    """The rig without joints that neither carry weight nor have a descendant that does."""
    needed = weights.max(axis=0) > 0.05
    for joint in range(len(parents) - 1, 0, -1):
        needed[parents[joint]] |= needed[joint]
    lost = np.flatnonzero(~needed)
    if len(lost):
        # What little weight they have goes to the nearest ancestor that stays.
        weights = weights.copy()
        for joint in lost[::-1]:
            weights[:, parents[joint]] += weights[:, joint]
        weights[:, lost] = 0
    new = np.cumsum(needed) - 1
    kept = np.flatnonzero(needed)
    above = parents[kept]
    return Rig(
        joints[kept],
        np.where(above < 0, -1, new[above]),
        weights[:, kept].astype(np.float32),
        tuple(names[i] for i in kept),
    )
