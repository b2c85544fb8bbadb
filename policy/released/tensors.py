"""Checks a released checkpoint's tensors (names, shapes, order, dtypes) against a configuration."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from policy.layers.finite import non_finite_names, not_finite_message
from policy.released.checkpoint import CheckpointError
from policy.skintokens.configuration import SkinVAEConfig
from policy.skintokens.skin_vae import SkinVAE
from policy.tokenrig.configuration import TokenRigConfig
from policy.tokenrig.modeling import TokenRigForCausalLM

VAE_PREFIX = "vae."
HEAD = "transformer.lm_head.weight"
EMBEDDING = "transformer.model.embed_tokens.weight"

_PARTS = (VAE_PREFIX, "mesh_encoder.", "output_proj.", "transformer.")

# Constant tables that some versions save although the configuration determines them.
_CONSTANT_BUFFERS = re.compile(
    r"(embedder\.(frequencies|phase)|FSQ\.(_levels|_basis|implicit_codebook)|rotary_emb\.\w*inv_freq)$"
)


def model_shapes(config: TokenRigConfig) -> dict[str, tuple[int, ...]]:
    """Shape by name of every tensor of TokenRig without its skin VAE; the tied head is included."""
    with torch.device("meta"):
        model = TokenRigForCausalLM(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def vae_shapes(config: SkinVAEConfig) -> dict[str, tuple[int, ...]]:
    """Shape by name of every tensor of the skin VAE."""
    with torch.device("meta"):
        vae = SkinVAE(config)
    return {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()}


def release_order(config: TokenRigConfig, vae_config: SkinVAEConfig) -> list[str]:
    """Names of all tensors in the order of a released TokenRig checkpoint."""
    own = list(model_shapes(config))
    parts = ("mesh_encoder.", "transformer.", "output_proj.")
    skin = (VAE_PREFIX + name for name in vae_shapes(vae_config))
    return [*skin, *(name for part in parts for name in own if name.startswith(part))]


def check_tensors(
    path: str,
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
    vae_assumed: bool = False,
) -> tuple[str, ...]:
    """Compare names and shapes of a file's tensors with the expected ones; return the names that are unused.

    `vae_assumed` adds a hint to pass the VAE's checkpoint. Raises CheckpointError listing every missing,
    unexpected and wrongly shaped tensor.
    """
    extra = [name for name in tensors if name not in expected]
    unused = [name for name in extra if _CONSTANT_BUFFERS.search(name) or not name.startswith(_PARTS)]
    problems = []
    missing = [name for name in expected if name not in tensors]
    if missing:
        problems.append(f"{len(missing)} missing: {', '.join(missing)}")
    unexpected = sorted(set(extra) - set(unused))
    if unexpected:
        problems.append(f"{len(unexpected)} unexpected: {', '.join(unexpected)}")
    wrong = [
        f"{name} (expected {expected[name]}, found {tuple(tensor.shape)})"
        for name, tensor in tensors.items()
        if name in expected and tuple(tensor.shape) != expected[name]
    ]
    if wrong:
        problems.append(f"{len(wrong)} of the wrong shape: {', '.join(wrong)}")
    if problems:
        hint = " (for another VAE, pass its checkpoint with --vae)" if vae_assumed else ""
        raise CheckpointError(f"{path}: tensors do not match the configuration{hint}; {'; '.join(problems)}")
    return tuple(unused)


def check_finite(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise CheckpointError if a weight of the file or folder `path` is NaN or infinite."""
    found = non_finite_names(tensors.items())
    if found:
        raise CheckpointError(not_finite_message(path, found))


def stored_dtypes(config: TokenRigConfig, names: Iterable[str]) -> dict[str, torch.dtype]:
    """Dtype by name to export tensors in: the imported file's, or bfloat16 if the policy was not imported."""
    release = config.release or {}
    common = release.get("dtype", "bfloat16")
    others = release.get("other_dtypes", {})
    return {name: getattr(torch, others.get(EMBEDDING if name == HEAD else name, common)) for name in names}
