"""Skin decoder of the reward service: the SkinTokens of a whole group to skinning weights, in one batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from policy.skintokens.skin_vae import SkinVAE
from rewards.worker import LRUCache, RewardMesh

# Condition latents are small (under 1 MB per mesh in the released model) and expensive to compute.
CONDITIONS_KEPT = 4096

DecoderDtype = Literal["float32", "tf32", "bfloat16"]


class SkinDecoder:
    """Wraps the frozen VAE's decoder; condition latents are computed once per mesh.

    Args:
        skin_vae: moved to `device`, in eval mode, without gradients.
        device: torch device.
        threads: torch threads while decoding.
        dtype: of the decoder's matrix products: `float32`, `tf32` (float32 whose products keep 10 bits of
            mantissa; CUDA only) or `bfloat16`. The condition latents, the embedding of points and the
            returned weights are float32 in any case.

    Raises:
        ValueError: tf32 on another device than CUDA.
    """

    def __init__(
        self, skin_vae: SkinVAE, device: str = "cpu", threads: int = 1, dtype: DecoderDtype = "float32"
    ) -> None:
        if dtype == "tf32" and torch.device(device).type != "cuda":
            raise ValueError(f"tf32 needs a CUDA device, not '{device}'; use float32 or bfloat16")
        self.skin_vae = skin_vae.to(device).eval().requires_grad_(False)
        self.device = device
        self.threads = threads
        self._tf32 = dtype == "tf32"
        self._frozen = self.skin_vae.frozen_decoder(torch.bfloat16 if dtype == "bfloat16" else torch.float32)
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
        counts = [len(rows) for rows in codes]
        # With a fixed thread count all backends sum in the same order: rewards agree to the last bit.
        with _torch_threads(self.threads):
            condition = self._conditions.get(mesh.key, lambda: self._condition(mesh))
            with tf32_products() if self._tf32 else nullcontext():
                weights = self.skin_vae.decode(
                    torch.from_numpy(np.concatenate(codes)).to(self.device),
                    condition,
                    self._tensor(vertices),
                    self._tensor(normals),
                    decoder=self._frozen,
                )
            # Turned on the device, so that a GPU's weights reach the host in one copy, in their final order.
            turned = torch.cat([part.T.reshape(-1) for part in weights.split(counts)]).cpu().numpy()
        ends = np.cumsum(counts)[:-1] * len(vertices)
        return [rows.reshape(len(vertices), -1) for rows in np.split(turned, ends)]

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


@contextmanager
def tf32_products() -> Iterator[None]:
    """CUDA's float32 matrix products in TF32 inside the block, for this process.

    Set through torch's older switch, which moves the newer one (`fp32_precision`) too: products refuse to run
    after the newer one alone was moved.
    """
    matmul = torch.backends.cuda.matmul
    if hasattr(torch.backends, "fp32_precision") and matmul.fp32_precision == "tf32":
        yield  # everywhere already; the older switch may then not be read
        return
    before = matmul.allow_tf32
    matmul.allow_tf32 = True
    try:
        yield
    finally:
        matmul.allow_tf32 = before
