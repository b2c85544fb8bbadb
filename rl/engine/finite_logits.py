"""Refuses rollouts whose logits are NaN or infinite, and conditioning embeddings that are, by mesh name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from data.command_line import RunFailedError

_FIX = (
    "the weights are damaged, or they overflow in a lower precision: use an earlier checkpoint, or set "
    "rollout.dtype=float32, train.bf16=false and train.fp16=false"
)

# A rollout engine looks every so many tokens, because on CUDA each look costs a copy to the host.
LOOK_EVERY = 16


def check_log_probs(log_probs: Tensor, mesh_index: Tensor, names: Sequence[str]) -> None:
    """Raise RunFailedError, naming meshes and rows, if a sampled token's log-probability is not finite.

    A NaN or infinite logit of a legal token makes the log-probability of whatever token is drawn from that
    row non-finite, so no other flag is needed. log_probs: (B, L) of the tokens drawn so far, 0 elsewhere;
    mesh_index: (B,) on the CPU; names: of the meshes, or empty.
    """
    bad = ~log_probs.isfinite().all(dim=1)
    if bool(bad.any()):
        rows = bad.nonzero()[:, 0].tolist()
        meshes = dict.fromkeys(_name(int(mesh_index[row]), names) for row in rows)
        raise RunFailedError(
            f"the policy's logits for mesh {_few(meshes)} are NaN or infinite in {len(rows)} of "
            f"{len(log_probs)} rollouts (row {_few(rows)}); {_FIX}"
        )


def check_embeddings(embeds: Tensor, names: Sequence[str]) -> None:
    """Raise RunFailedError, naming the meshes, if conditioning embeddings (M, T, hidden) are not finite."""
    bad = ~embeds.isfinite().flatten(1).all(dim=1)
    if bool(bad.any()):
        meshes = [_name(index, names) for index in bad.nonzero()[:, 0].tolist()]
        raise RunFailedError(
            f"the mesh encoder's embedding of mesh {_few(meshes)} is NaN or infinite; {_FIX}, or leave out "
            "that mesh"
        )


def _few(values: Iterable[object]) -> str:
    """The first eight values as a list."""
    texts = list(map(str, values))
    return ", ".join(texts[:8]) + (", …" if len(texts) > 8 else "")


def _name(mesh: int, names: Sequence[str]) -> str:
    return names[mesh] if names else str(mesh)
