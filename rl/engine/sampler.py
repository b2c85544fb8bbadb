"""What every rollout engine takes and returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from policy.tokens.grammar import Grammar
from rl.prompts import SkeletonTokens


@dataclass(frozen=True, eq=False)
class SamplingRequest:
    """Rows to sample at once.

    Attributes:
        mesh_embeds: (M, T, hidden) conditioning embeddings.
        mesh_index: (B,) int64, the mesh of each row, on the CPU.
        class_ids: (B,) int64, the class token of each row, on the CPU.
        skeletons: the given skeleton of each mesh, empty where the policy writes it.
        uniforms: (B, L) float64 in [0, 1); L is the token limit and row i's tokens depend on uniforms[i].
        temperature: 0 is greedy.
        top_k, top_p: restrict the candidates; for inference only.
        names: of the meshes, for error messages; their indices if empty.
    """

    mesh_embeds: Tensor
    mesh_index: Tensor
    class_ids: Tensor
    skeletons: Sequence[SkeletonTokens]
    uniforms: Tensor
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    names: Sequence[str] = ()


class Sampler(Protocol):
    """A rollout engine.

    Attributes:
        grammar: the legal sequences.
        positions: the model's positions, for mesh, prompt and completion.
    """

    @property
    def grammar(self) -> Grammar: ...

    @property
    def positions(self) -> int: ...

    def refresh(self) -> None:
        """Adopt the model's current weights; call it after each optimiser step."""
        ...

    def sample(self, request: SamplingRequest) -> tuple[Tensor, Tensor]:
        """Sample one completion per row.

        Returns:
            Token ids (B, L') int64 and log-probabilities (B, L') float32, nats, L' at most L and at least
            the longest completion; past a row's end, `pad` and 0.

        Raises:
            RunFailedError: logits are not finite.
        """
        ...
