"""Numba kernels of deformation: joint transforms down the hierarchy, linear blend skinning, edge stretch."""

from typing import Any

import numpy as np

from data.compiled import kernel

NO_WEIGHT = 1e-300  # a vertex whose weights sum to less has none: their inverse would overflow
LENGTH_EPSILON = 1e-6  # of the formula of R_mo, in mesh units

# Joint transforms. Parents precede children in `order`, so one walk suffices. A transform is kept as a 3 x 3
# rotation and the joint's posed position (its head): the formula's products with T(h_j - h_parent) become one
# rotated offset per joint, the product with T(-h_j) one subtraction at the end.


@kernel()
def chain_transforms(rest: Any, parents: Any, order: Any, local: Any) -> Any:
    """Rest-to-posed transforms (P, J, 3, 4) float64.

    rest (J, 3) float64, parents (J,) and order (J,) int64, local (P, J, 3, 3) float64 rotations.
    """
    poses, joint_count = local.shape[:2]
    result = np.empty((poses, joint_count, 3, 4))
    heads = np.empty((joint_count, 3))
    for p in range(poses):
        for j in order:
            up = parents[j]
            for a in range(3):
                if up < 0:
                    heads[j, a] = rest[j, a]
                    for b in range(3):
                        result[p, j, a, b] = local[p, j, a, b]
                else:
                    heads[j, a] = heads[up, a]
                    for b in range(3):
                        heads[j, a] += result[p, up, a, b] * (rest[j, b] - rest[up, b])
                        turned = 0.0
                        for c in range(3):
                            turned += result[p, up, a, c] * local[p, j, c, b]
                        result[p, j, a, b] = turned
            for a in range(3):
                moved = heads[j, a]
                for b in range(3):
                    moved -= result[p, j, a, b] * rest[j, b]
                result[p, j, a, 3] = moved
    return result


# Linear blend skinning. Blend the matrices of all poses first, as one row of P·12 numbers, then apply them
# to the vertex once:
#
#     a vertex's weights    0.3   0    0   0.5   0   0.2   0       joints 0, 3 and 5 have weight
#     blend                 0.3·row0 + 0.5·row3 + 0.2·row5 + 0·row0
#
# Joints without weight cost nothing. Four rows are added per pass, which reads and writes `blend` a quarter
# as often; joint 0 at weight 0 fills up the last pass. The sum of weights divides the result, not each
# weight.


@kernel(fastmath={"contract"}, inline="always")
def blend_rows(weights: Any, rows: Any, used: Any, share: Any, blend: Any) -> Any:
    """Set `blend` (W,) to the sum of weights[j] · rows[j], and return the sum of the weights.

    weights (J,) of one vertex, rows (J, W) float64; used (J + 4,) int64 and share (J + 4,) float64 are room
    to work in.
    """
    count, width = rows.shape
    total = 0.0
    kept = 0
    for j in range(count):
        w = np.float64(weights[j])
        used[kept], share[kept] = j, w
        kept += 1 if w > 0.0 else 0
        total += w
    used[kept : kept + 4], share[kept : kept + 4] = 0, 0.0
    blend[:] = 0.0
    for i in range(0, kept, 4):
        row0, row1 = rows[used[i]], rows[used[i + 1]]
        row2, row3 = rows[used[i + 2]], rows[used[i + 3]]
        w0, w1, w2, w3 = share[i], share[i + 1], share[i + 2], share[i + 3]
        for k in range(width):
            blend[k] += w0 * row0[k] + w1 * row1[k] + w2 * row2[k] + w3 * row3[k]
    return total


@kernel(fastmath={"contract"})
def skin_vertices(points: Any, weights: Any, matrices: Any) -> Any:
    """Posed vertices (S, P, 3) float64.

    points (S, 3) float64, weights (S, J) float32 or float64, matrices (J, P·12) float64.
    """
    count, width = weights.shape[1], matrices.shape[1]
    poses = width // 12
    moved = np.empty((points.shape[0], poses, 3))
    blend = np.empty(width)
    # The joints with weight at a vertex and their weights, with room for the padding.
    used, share = np.zeros(count + 4, np.int64), np.zeros(count + 4)
    for v in range(points.shape[0]):
        total = blend_rows(weights[v], matrices, used, share, blend)
        x, y, z = points[v, 0], points[v, 1], points[v, 2]
        inverse = 1.0 / total if total > NO_WEIGHT else 0.0
        for p in range(poses):
            for a in range(3):
                k = p * 12 + a * 4
                turned = blend[k] * x + blend[k + 1] * y + blend[k + 2] * z + blend[k + 3]
                moved[v, p, a] = turned * inverse if total > NO_WEIGHT else points[v, a]
    return moved


# Edge stretch. An edge's rest length is inverted once, so that each pose costs one square root and one
# product. `posed` holds a vertex's poses next to each other, so that an edge reads two short runs of
# memory.


@kernel(fastmath={"contract"})
def edge_stretch(rest: Any, edges: Any, posed: Any) -> Any:
    """Per pose: largest stretch (P,), sum of stretches (P,), index of the most stretched edge (P,), or -1.

    rest (S, 3) float64, edges (E, 2) int64, posed (S, P, 3) float64.
    """
    poses = posed.shape[1]
    largest = np.ones(poses)
    sums = np.zeros(poses)
    worst = np.full(poses, -1, np.int64)
    for e in range(edges.shape[0]):
        a, b = edges[e]
        dx = rest[a, 0] - rest[b, 0]
        dy = rest[a, 1] - rest[b, 1]
        dz = rest[a, 2] - rest[b, 2]
        inverse = 1.0 / (np.sqrt(dx * dx + dy * dy + dz * dz) + LENGTH_EPSILON)
        for p in range(poses):
            dx = posed[a, p, 0] - posed[b, p, 0]
            dy = posed[a, p, 1] - posed[b, p, 1]
            dz = posed[a, p, 2] - posed[b, p, 2]
            stretch = max(1.0, np.sqrt(dx * dx + dy * dy + dz * dz) * inverse)
            sums[p] += stretch
            if stretch > largest[p] or worst[p] < 0:
                largest[p] = stretch
                worst[p] = e
    return largest, sums, worst
