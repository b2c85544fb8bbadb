"""Skin decoder of the reward service: the SkinTokens of a whole group to skinning weights, in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray

from policy.skintokens.skin_vae import SkinVAE
from rewards.worker import LRUCache, RewardMesh

# Condition latents are small (under 1 MB per mesh in the released model) and expensive to compute.
CONDITIONS_KEPT = 4096


class SkinDecoder:
    """Wraps the frozen VAE's decoder; condition latents are computed once per mesh.

    Args:
        skin_vae: moved to `device`, in eval mode, without gradients.
        device: torch device.
        threads: torch threads while decoding.
    """

    def __init__(self, skin_vae: SkinVAE, device: str = "cpu", threads: int = 1) -> None:
        self.skin_vae = skin_vae.to(device).eval().requires_grad_(False)
        self.device = device
        self.threads = threads
        self._conditions: LRUCache[torch.Tensor] = LRUCache(CONDITIONS_KEPT)

    def decode(
        self,
        mesh: RewardMesh,
        vertices: NDArray[np.float32],
        normals: NDArray[np.float32],
        codes: Sequence[NDArray[np.int64]],
    ) -> list[NDArray[np.float32]]:
        """Skinning weights of each rollout at the scoring mesh's vertices.

        Args:
            mesh: its point cloud conditions the decoder.
            vertices: (S, 3) float32 query points, mesh frame.
            normals: (S, 3) float32 at the query points.
            codes: for each rollout (J, K) int64; J may differ.

        Returns:
            For each rollout (S, J) float32, raw.
        """
        if not codes:
            return []
        # With a fixed thread count all backends sum in the same order: rewards agree to the last bit.
        with _torch_threads(self.threads):
            weights = self.skin_vae.decode(
                torch.from_numpy(np.concatenate(codes)).to(self.device),
                self._conditions.get(mesh.key, lambda: self._condition(mesh)),
                self._tensor(vertices),
                self._tensor(normals),
            )
        per_bone = weights.cpu().numpy()
        ends = np.cumsum([len(rows) for rows in codes])[:-1]
        return [np.ascontiguousarray(rows.T) for rows in np.split(per_bone, ends)]

    def _condition(self, mesh: RewardMesh) -> torch.Tensor:
        return self.skin_vae.encode_condition(
            self._tensor(mesh.points)[None], self._tensor(mesh.normals)[None]
        )

    def _tensor(self, values: NDArray[np.floating]) -> torch.Tensor:
        # A copy: arrays from the object store are read-only, and alignment must not affect the last bit.
        return torch.tensor(values, dtype=torch.float32, device=self.device)


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
