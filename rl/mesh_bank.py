"""Meshes by index: handles in prompts, point clouds, and cached conditioning embeddings."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from data.sets.dataset import MeshSample
from policy.tokenrig.modeling import TokenRigForCausalLM
from policy.tokens.text_tokenizer import mesh_prompt
from policy.tokens.vocabulary import Vocabulary


class MeshBank:
    """Mesh k of `samples` is written `<mesh:k>` in a prompt and `vocabulary.size + k` as a prompt id.

    TRL carries a mesh through a step as that id. The bank holds the point clouds (M, N, 3) and, while the
    mesh encoder is frozen, each mesh's conditioning embeddings (T, hidden), computed on first use.

    Raises:
        ValueError: no samples, or clouds of different sizes.
    """

    def __init__(self, samples: Sequence[MeshSample], vocabulary: Vocabulary, class_name: str | None) -> None:
        if not samples:
            raise ValueError("a mesh bank needs at least one mesh")
        if len({len(sample.points) for sample in samples}) != 1:
            raise ValueError("every mesh must be sampled with the same number of points")
        self.samples = list(samples)
        self.vocabulary = vocabulary
        self.class_id = vocabulary.class_id(class_name)
        self.points = torch.stack([torch.from_numpy(sample.points) for sample in samples])
        self.normals = torch.stack([torch.from_numpy(sample.normals) for sample in samples])
        self._embeds: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.samples)

    def prompt(self, index: int) -> str:
        """`<mesh:k> <bos> <class:…>`."""
        return mesh_prompt(index, self.class_id, self.vocabulary)

    def names(self, index: Sequence[int]) -> list[str]:
        """Names of meshes by index."""
        return [self.samples[k].name for k in index]

    def index_of(self, prompt_ids: Tensor) -> Tensor:
        """(B,) mesh indices from prompt ids (B, P); raises ValueError if an id is not a mesh handle."""
        index = prompt_ids[:, 0] - self.vocabulary.size
        if bool(((index < 0) | (index >= len(self))).any()):
            first = self.vocabulary.size
            raise ValueError(f"prompt ids must begin with a mesh handle, {first} to {first + len(self) - 1}")
        return index

    def clouds(self, index: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Points and normals (B, N, 3) float32, mesh frame, of the meshes `index` (B,), on `device`."""
        index = index.cpu()
        return self.points[index].to(device), self.normals[index].to(device)

    @torch.no_grad()
    def embeds(self, index: Tensor, model: TokenRigForCausalLM) -> Tensor:
        """Conditioning (B, T, hidden) of meshes `index` (B,) by the frozen encoder of `model`, cached."""
        device = model.device
        wanted = index.tolist()
        missing = sorted({k for k in wanted if k not in self._embeds})
        for chunk in range(0, len(missing), 16):
            rows = torch.tensor(missing[chunk : chunk + 16])
            encoded = model.encode_mesh(*self.clouds(rows, device))
            self._embeds.update(zip(rows.tolist(), encoded, strict=True))
        return torch.stack([self._embeds[k] for k in wanted])

    def forget_embeds(self) -> None:
        """Clear the cache, after the encoder's weights have changed."""
        self._embeds.clear()
