"""Numba kernel of volume preservation: determinants of the blended rotations at all vertices."""

from typing import Any

import numpy as np

from data.compiled import kernel
from rewards.kernels.skinning import NO_WEIGHT, blend_rows

# As in linear blend skinning, the matrices of all poses are blended as one row, of P·9 numbers here:
# translations do not change volumes.


@kernel(fastmath={"contract"})
def kept_volume(weights: Any, turns: Any) -> float:
    """Sum over vertices and poses of the blended rotation's determinant, clipped to [0, 1].

    weights (S, J) float32 or float64, turns (J, P·9) float64. A vertex without weight counts as 1.
    """
    count, width = turns.shape
    poses = width // 9
    blend = np.empty(width)
    used, share = np.zeros(count + 4, np.int64), np.zeros(count + 4)
    kept = 0.0
    for v in range(weights.shape[0]):
        total = blend_rows(weights[v], turns, used, share, blend)
        if not total > NO_WEIGHT:
            kept += poses
            continue
        inverse = 1.0 / total
        for k in range(width):  # before the products of three, which could overflow
            blend[k] *= inverse
        for p in range(poses):
            m = blend[9 * p : 9 * p + 9]
            volume = (
                m[0] * (m[4] * m[8] - m[5] * m[7])
                - m[1] * (m[3] * m[8] - m[5] * m[6])
                + m[2] * (m[3] * m[7] - m[4] * m[6])
            )
            kept += min(max(volume, 0.0), 1.0)
    return kept
