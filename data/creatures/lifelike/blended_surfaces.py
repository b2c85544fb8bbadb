"""Meshes of blended solids: shapes melt into one closed surface (surface nets), with skinning weights."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.compiled import kernel

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# A row of a table of solids holds its start point (columns 0 to 2), unit axes (NORMAL, BINORMAL and ALONG,
# three columns each) and what `solid` takes. WIDE, DEEP and CAP are its `stretch`.
NORMAL, BINORMAL, ALONG = 3, 6, 9
LENGTH, RADIUS, END_RADIUS, WIDE, DEEP, CAP, SQUARE, FLUSH = range(12, 20)
_MAX_GRID = 300_000
_FAR = 1e3
# Weight influences per vertex.
_INFLUENCES = 4


def solid(
    start: Floats,
    end: Floats,
    radii: tuple[float, float],
    normal: Floats,
    stretch: tuple[float, float, float] = (1.0, 1.0, 1.0),
    square: int = 0,
    flush: bool = False,
) -> Floats:
    """One row (20,) of the table of solids: a tapered capsule, ellipsoid or rounded box.

    start, end (3,): of the centre line; if they are equal, the third axis of the solid is +y. radii: at both
    ends. `normal` (3,): reference direction, not parallel to the line. `stretch`: of the radius along the
    normal, along the binormal and beyond both ends. `square`: 0 for round profiles and ends, 1 (exponent 4)
    and 2 (exponent 8) for ever more box-like ones. `flush`: joins the solids before it in the table without
    melting, as the slabs of one trunk do: where equal surfaces overlap, melting would raise a rim.
    """
    along = end - start
    length = float(np.sqrt(along @ along))
    along = along / length if length > 1e-9 else np.array([0.0, 1.0, 0.0])
    across = normal - (normal @ along) * along
    across = across / np.sqrt(across @ across)
    third = np.array(
        [
            along[1] * across[2] - along[2] * across[1],
            along[2] * across[0] - along[0] * across[2],
            along[0] * across[1] - along[1] * across[0],
        ]
    )
    tail = [length, radii[0], radii[1], stretch[0], stretch[1], stretch[2], square, flush]
    return np.concatenate([start, across, third, along, tail])


@kernel(inline="always")
def _distance(solids: Any, i: int, x: float, y: float, z: float) -> float:
    """Roughly the signed distance from a point to solid i: zero on its surface, negative inside."""
    dx, dy, dz = x - solids[i, 0], y - solids[i, 1], z - solids[i, 2]
    u = dx * solids[i, NORMAL] + dy * solids[i, NORMAL + 1] + dz * solids[i, NORMAL + 2]
    w = dx * solids[i, BINORMAL] + dy * solids[i, BINORMAL + 1] + dz * solids[i, BINORMAL + 2]
    s = dx * solids[i, ALONG] + dy * solids[i, ALONG + 1] + dz * solids[i, ALONG + 2]
    u, w, length = u / solids[i, WIDE], w / solids[i, DEEP], solids[i, LENGTH]
    share, beyond = 0.0, 0.0
    if s < 0.0:
        beyond = -s
    elif s > length:
        share, beyond = 1.0, s - length
    elif length > 0.0:
        share = s / length
    e = beyond / solids[i, CAP]
    u, w, e = u * u, w * w, e * e
    if solids[i, SQUARE] == 0:
        norm = np.sqrt(u + w + e)
    elif solids[i, SQUARE] == 1:
        norm = np.sqrt(np.sqrt(u * u + w * w + e * e))
    else:
        norm = np.sqrt(np.sqrt(np.sqrt(u * u * u * u + w * w * w * w + e * e * e * e)))
    return norm - (solids[i, RADIUS] + share * (solids[i, END_RADIUS] - solids[i, RADIUS]))


@kernel()
def bounds(solids: Floats) -> Floats:
    """Boxes (N, 6) around the solids (N, 20): lowest and highest coordinates."""
    boxes = np.empty((len(solids), 6))
    for i in range(len(solids)):
        for axis in range(3):
            reach = (
                solids[i, WIDE] * abs(solids[i, NORMAL + axis])
                + solids[i, DEEP] * abs(solids[i, BINORMAL + axis])
                + solids[i, CAP] * abs(solids[i, ALONG + axis])
            )
            start = solids[i, axis]
            end = start + solids[i, LENGTH] * solids[i, ALONG + axis]
            boxes[i, axis] = min(start - reach * solids[i, RADIUS], end - reach * solids[i, END_RADIUS])
            boxes[i, 3 + axis] = max(start + reach * solids[i, RADIUS], end + reach * solids[i, END_RADIUS])
    return boxes


@kernel()
def _field(solids: Any, boxes: Any, origin: Any, cell: float, shape: Any, blend: float) -> Any:
    """Smooth union of the solids at the points of a grid: (X, Y, Z), negative inside."""
    field = np.full((shape[0], shape[1], shape[2]), _FAR)
    for i in range(len(solids)):
        width = 0.0 if solids[i, FLUSH] > 0 else blend
        first = np.empty(3, dtype=np.int64)
        last = np.empty(3, dtype=np.int64)
        for axis in range(3):
            low = (boxes[i, axis] - blend - origin[axis]) / cell - 1.0
            high = (boxes[i, 3 + axis] + blend - origin[axis]) / cell + 2.0
            first[axis] = min(max(int(low), 0), shape[axis])
            last[axis] = min(max(int(high), 0), shape[axis])
        for a in range(first[0], last[0]):
            x = origin[0] + a * cell
            for b in range(first[1], last[1]):
                y = origin[1] + b * cell
                for c in range(first[2], last[2]):
                    new = _distance(solids, i, x, y, origin[2] + c * cell)
                    old = field[a, b, c]
                    gap = width - abs(old - new)
                    least = min(old, new)
                    if gap > 0.0:
                        least -= gap * gap / (4.0 * width)
                    field[a, b, c] = least
    return field


@kernel()
def _net(field: Any, origin: Any, cell: float) -> Any:
    """Surface net of a field's zero level: vertices (V, 3) and triangles (F, 3) that face outward."""
    nx, ny, nz = field.shape
    index = np.full((nx - 1, ny - 1, nz - 1), -1, dtype=np.int64)
    count = 0
    for a in range(nx - 1):
        for b in range(ny - 1):
            for c in range(nz - 1):
                inside = 0
                for corner in range(8):
                    if field[a + (corner & 1), b + ((corner >> 1) & 1), c + (corner >> 2)] < 0.0:
                        inside += 1
                if 0 < inside < 8:
                    index[a, b, c] = count
                    count += 1
    points = np.zeros((count, 3))
    for a in range(nx - 1):
        for b in range(ny - 1):
            for c in range(nz - 1):
                vertex = index[a, b, c]
                if vertex < 0:
                    continue
                crossings = 0
                for corner in range(8):
                    i, j, k = corner & 1, (corner >> 1) & 1, corner >> 2
                    here = field[a + i, b + j, c + k]
                    for axis in range(3):
                        if (corner >> axis) & 1:
                            continue
                        there = field[
                            a + i + (1 if axis == 0 else 0),
                            b + j + (1 if axis == 1 else 0),
                            c + k + (1 if axis == 2 else 0),
                        ]
                        if (here < 0.0) != (there < 0.0):
                            t = here / (here - there)
                            points[vertex, 0] += a + i + (t if axis == 0 else 0.0)
                            points[vertex, 1] += b + j + (t if axis == 1 else 0.0)
                            points[vertex, 2] += c + k + (t if axis == 2 else 0.0)
                            crossings += 1
                for axis in range(3):
                    points[vertex, axis] = origin[axis] + cell * points[vertex, axis] / crossings
    triangles = np.empty((6 * count + 6, 3), dtype=np.int64)
    made = 0
    q = np.empty(4, dtype=np.int64)
    for a in range(1, nx - 1):
        for b in range(1, ny - 1):
            for c in range(1, nz - 1):
                inside = field[a, b, c] < 0.0
                for axis in range(3):
                    if axis == 0:
                        other = field[a + 1, b, c] < 0.0
                        if other == inside:
                            continue
                        q[0], q[1] = index[a, b - 1, c - 1], index[a, b, c - 1]
                        q[2], q[3] = index[a, b, c], index[a, b - 1, c]
                    elif axis == 1:
                        other = field[a, b + 1, c] < 0.0
                        if other == inside:
                            continue
                        q[0], q[1] = index[a - 1, b, c - 1], index[a - 1, b, c]
                        q[2], q[3] = index[a, b, c], index[a, b, c - 1]
                    else:
                        other = field[a, b, c + 1] < 0.0
                        if other == inside:
                            continue
                        q[0], q[1] = index[a - 1, b - 1, c], index[a, b - 1, c]
                        q[2], q[3] = index[a, b, c], index[a - 1, b, c]
                    if not inside:
                        q[1], q[3] = q[3], q[1]
                    first, second = 0.0, 0.0
                    for k in range(3):
                        first += (points[q[0], k] - points[q[2], k]) ** 2
                        second += (points[q[1], k] - points[q[3], k]) ** 2
                    shift = 0 if first <= second else 1
                    for half in range(2):
                        triangles[made, 0] = q[shift]
                        triangles[made, 1] = q[(shift + 1 + half) % 4]
                        triangles[made, 2] = q[(shift + 2 + half) % 4]
                        made += 1
    return points, triangles[:made].copy()


@kernel(inline="always")
def _union(solids: Any, boxes: Any, x: float, y: float, z: float, blend: float, reach: float) -> float:
    """Smooth union of the solids at a point, from those whose boxes come within `reach` of it."""
    field = _FAR
    for i in range(len(solids)):
        if (
            boxes[i, 0] - reach < x < boxes[i, 3] + reach
            and boxes[i, 1] - reach < y < boxes[i, 4] + reach
            and boxes[i, 2] - reach < z < boxes[i, 5] + reach
        ):
            new = _distance(solids, i, x, y, z)
            width = 0.0 if solids[i, FLUSH] > 0 else blend
            gap = width - abs(field - new)
            field = min(field, new)
            if gap > 0.0:
                field -= gap * gap / (4.0 * width)
    return field


@kernel()
def _project(points: Any, solids: Any, boxes: Any, blend: float, cell: float) -> None:
    """Move the vertices of a net, in place, onto the surface: one Newton step of at most half a cell."""
    step, reach = 0.02 * cell, blend + cell
    for v in range(len(points)):
        x, y, z = points[v, 0], points[v, 1], points[v, 2]
        here = _union(solids, boxes, x, y, z, blend, reach)
        gx = (_union(solids, boxes, x + step, y, z, blend, reach) - here) / step
        gy = (_union(solids, boxes, x, y + step, z, blend, reach) - here) / step
        gz = (_union(solids, boxes, x, y, z + step, blend, reach) - here) / step
        slope = gx * gx + gy * gy + gz * gz
        if slope > 1e-6:
            far = here / slope
            limit = 0.5 * cell / np.sqrt(slope)
            far = min(max(far, -limit), limit)
            points[v, 0] -= far * gx
            points[v, 1] -= far * gy
            points[v, 2] -= far * gz


@kernel()
def blended_mesh(solids: Floats, starts: Ints, cells: Floats, blends: Floats) -> tuple[Floats, Ints, Ints]:
    """Vertices (V, 3), outward triangles (F, 3) and each vertex's piece (V,).

    Piece k is the smooth union of the solids (N, 20) from starts[k] to starts[k + 1], sampled by a grid of
    spacing cells[k] that is symmetric about the middle of the piece; blends[k] is the width over which its
    solids melt into each other.
    """
    boxes = bounds(solids)
    pieces = len(starts) - 1
    all_points = [np.empty((0, 3))]
    all_triangles = [np.empty((0, 3), dtype=np.int64)]
    owners = [np.empty(0, dtype=np.int64)]
    total = 0
    for piece in range(pieces):
        part = boxes[starts[piece] : starts[piece + 1]]
        cell = cells[piece]
        origin = np.empty(3)
        shape = np.empty(3, dtype=np.int64)
        while True:
            size = 1.0
            for axis in range(3):
                low, high = part[:, axis].min() - 0.3 * blends[piece], part[:, 3 + axis].max()
                high += 0.3 * blends[piece]
                shape[axis] = int(np.ceil((high - low) / cell)) + 3
                origin[axis] = (low + high) / 2 - (shape[axis] - 1) / 2 * cell
                size *= shape[axis]
            if size <= _MAX_GRID:
                break
            cell *= 1.2
        field = _field(solids[starts[piece] : starts[piece + 1]], part, origin, cell, shape, blends[piece])
        points, triangles = _net(field, origin, cell)
        _project(points, solids[starts[piece] : starts[piece + 1]], part, blends[piece], cell)
        all_points.append(points)
        all_triangles.append(triangles + total)
        owners.append(np.full(len(points), piece, dtype=np.int64))
        total += len(points)
    faces = 0
    for piece in range(len(all_triangles)):
        faces += len(all_triangles[piece])
    vertices = np.empty((total, 3))
    triangles = np.empty((faces, 3), dtype=np.int64)
    owner = np.empty(total, dtype=np.int64)
    v, f = 0, 0
    for piece in range(len(all_points)):
        n, m = len(all_points[piece]), len(all_triangles[piece])
        vertices[v : v + n] = all_points[piece]
        owner[v : v + n] = owners[piece]
        triangles[f : f + m] = all_triangles[piece]
        v += n
        f += m
    return vertices, triangles, owner


@kernel()
def _touching(solids: Any, i: int, j: int) -> bool:
    """Whether an end of one solid's centre line lies close to the other's."""
    for one, two in ((i, j), (j, i)):
        reach = 0.6 * min(
            max(solids[one, RADIUS], solids[one, END_RADIUS]),
            max(solids[two, RADIUS], solids[two, END_RADIUS]),
        )
        for end in range(2):
            s = 0.0
            d = np.empty(3)
            for k in range(3):
                d[k] = solids[one, k] + end * solids[one, LENGTH] * solids[one, ALONG + k] - solids[two, k]
                s += d[k] * solids[two, ALONG + k]
            s = min(max(s, 0.0), solids[two, LENGTH])
            square = 0.0
            for k in range(3):
                square += (d[k] - s * solids[two, ALONG + k]) ** 2
            if square < reach * reach:
                return True
    return False


@kernel()
def solid_weights(
    points: Floats, owner: Ints, solids: Floats, starts: Ints, joints: Ints, sides: Ints, softness: Floats
) -> Floats:
    """Skinning weights (V, J) of a blended mesh: by the distances to the solids, which joints (N,) own.

    A vertex follows the joint of the nearest solid of its piece; joints of solids that touch this one share
    it where they are less than softness[piece] radii farther away. Joints on opposite sides of the body
    (sides (J,): -1, 0 or 1) never share a vertex, and at most four do. Rows sum to 1.
    """
    count = len(sides)
    weights = np.zeros((len(points), count))
    for piece in range(len(starts) - 1):
        low, high = starts[piece], starts[piece + 1]
        near = np.zeros((count, count), dtype=np.bool_)
        for i in range(low, high):
            for j in range(i):
                if j >= low and sides[joints[i]] * sides[joints[j]] >= 0 and _touching(solids, i, j):
                    near[joints[i], joints[j]] = True
                    near[joints[j], joints[i]] = True
        away = np.empty(count)
        for v in range(len(points)):
            if owner[v] != piece:
                continue
            away[:] = np.inf
            nearest, best = low, np.inf
            for i in range(low, high):
                d = _distance(solids, i, points[v, 0], points[v, 1], points[v, 2])
                if d < away[joints[i]]:
                    away[joints[i]] = d
                if d < best:
                    nearest, best = i, d
            main = joints[nearest]
            reach = softness[piece] * 0.5 * (solids[nearest, RADIUS] + solids[nearest, END_RADIUS])
            for _ in range(_INFLUENCES):
                joint, least = -1, np.inf
                for j in range(count):
                    if away[j] < least and weights[v, j] == 0.0 and (j == main or near[main, j]):
                        joint, least = j, away[j]
                if joint < 0 or (joint != main and least - best >= reach):
                    break
                t = 0.0 if joint == main else (least - best) / reach
                weights[v, joint] = 1.0 - t * t * (3.0 - 2.0 * t)
            weights[v] /= weights[v].sum()
    return weights


@kernel()
def hidden_vertices(points: Floats, owner: Ints, solids: Floats, starts: Ints, depth: float) -> Any:
    """Which vertices (V,) lie more than `depth` inside a solid of another piece."""
    boxes = bounds(solids)
    hidden = np.zeros(len(points), dtype=np.bool_)
    piece_of = np.empty(len(solids), dtype=np.int64)
    for piece in range(len(starts) - 1):
        piece_of[starts[piece] : starts[piece + 1]] = piece
    for v in range(len(points)):
        x, y, z = points[v, 0], points[v, 1], points[v, 2]
        for i in range(len(solids)):
            if (
                piece_of[i] != owner[v]
                and boxes[i, 0] < x < boxes[i, 3]
                and boxes[i, 1] < y < boxes[i, 4]
                and boxes[i, 2] < z < boxes[i, 5]
                and _distance(solids, i, x, y, z) < -depth
            ):
                hidden[v] = True
                break
    return hidden
