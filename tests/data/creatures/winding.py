"""How many closed surfaces contain a point: the generalised winding number, for tests."""

import numpy as np


def winding_number(points: np.ndarray, vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Generalised winding number (van Oosterom and Strackee): how many closed components contain a point."""
    corners = vertices[faces].astype(np.float64)[None] - points[:, None, None].astype(np.float64)
    a, b, c = corners[:, :, 0], corners[:, :, 1], corners[:, :, 2]
    la, lb, lc = (np.linalg.norm(x, axis=2) for x in (a, b, c))
    above = (a * np.cross(b, c)).sum(axis=2)
    below = la * lb * lc + (a * b).sum(2) * lc + (b * c).sum(2) * la + (c * a).sum(2) * lb
    return 2 * np.arctan2(above, below).sum(axis=1) / (4 * np.pi)
