"""FSQ: finite scalar quantisation of vectors to integer codes and back."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class FSQ(nn.Module):
    """Quantise each vector to one integer index; the first level is its least significant digit.

    Args:
        levels: l_k, number of values of each of the K quantised dimensions; 2 or more each.
        dim: channels of the vectors; `project_in` and `project_out` exist only if it differs from K.

    Everything is computed in float32, whatever the dtype of the weights and under autocast: rounding in a
    lower precision would change indices. Raises ValueError for other levels. Source: Mentzer et al. 2023
    (arXiv 2309.15505); specification, section 8.
    """

    def __init__(self, levels: Sequence[int], dim: int) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"every FSQ level must be 2 or more, got {list(levels)}")
        self.levels = tuple(int(level) for level in levels)
        self.dim = dim
        projected = dim != len(self.levels)
        self.project_in = nn.Linear(dim, len(self.levels)) if projected else None
        self.project_out = nn.Linear(len(self.levels), dim) if projected else None

    @property
    def codebook_size(self) -> int:
        """Number of different indices: the product of the levels."""
        size = 1
        for level in self.levels:
            size *= level
        return size

    def _levels(self, device: torch.device) -> Tensor:
        return torch.tensor(self.levels, dtype=torch.int64, device=device)

    def _basis(self, device: torch.device) -> Tensor:
        basis = [1]
        for level in self.levels[:-1]:
            basis.append(basis[-1] * level)
        return torch.tensor(basis, dtype=torch.int64, device=device)

    def bound(self, z: Tensor) -> Tensor:
        """Bound `(..., K)` projected values, float32, so that rounding gives exactly l_k integers."""
        half, offset = self._half_and_offset(z.device)
        return (z.float() + self.shift(z.device)).tanh() * half - offset

    def shift(self, device: torch.device) -> Tensor:
        """`(K,)` float32, added before the tanh; `-shift` is the middle of the projected range."""
        half, offset = self._half_and_offset(device)
        return (offset / half).atanh()

    def _half_and_offset(self, device: torch.device) -> tuple[Tensor, Tensor]:
        levels = self._levels(device).float()
        return (levels - 1) * (1 + 1e-3) / 2, torch.where(levels % 2 == 0, 0.5, 0.0)

    def quantize(self, z: Tensor) -> Tensor:
        """`(..., K)` projected values to codes in [-1, 1], float32, straight-through at the rounding."""
        bounded = self.bound(z)
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / (self._levels(z.device) // 2)

    def codes_to_indices(self, codes: Tensor) -> Tensor:
        """`(..., K)` codes in [-1, 1] to `(...)` int64 indices."""
        half = self._levels(codes.device) // 2
        digits = (codes.float() * half).round().to(torch.int64) + half
        return (digits * self._basis(codes.device)).sum(-1)

    def indices_to_digits(self, indices: Tensor) -> Tensor:
        """`(...)` integer indices, taken modulo the codebook size, to `(..., K)` int64 digits."""
        quotient = torch.div(
            indices.to(torch.int64)[..., None], self._basis(indices.device), rounding_mode="floor"
        )
        return quotient.remainder(self._levels(indices.device))

    def indices_to_levels(self, indices: Tensor) -> Tensor:
        """`(...)` integer indices to `(..., K)` float32 codes in [-1, 1]."""
        half = self._levels(indices.device) // 2
        return (self.indices_to_digits(indices) - half).float() / half

    def project(self, z: Tensor) -> Tensor:
        """`(..., dim)` vectors to `(..., K)` float32 projected values, before `bound`."""
        return _linear_fp32(self.project_in, z)

    def indices_to_codes(self, indices: Tensor) -> Tensor:
        """`(...)` integer indices to `(..., dim)` float32 code vectors."""
        return _linear_fp32(self.project_out, self.indices_to_levels(indices))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Quantise `(..., dim)` vectors to `(..., dim)` float32 code vectors and `(...)` int64 indices."""
        codes = self.quantize(self.project(z))
        return _linear_fp32(self.project_out, codes), self.codes_to_indices(codes.detach())


def _linear_fp32(layer: nn.Linear | None, x: Tensor) -> Tensor:
    x = x.float()
    if layer is None:
        return x
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x, layer.weight.float(), layer.bias.float())
