"""Converts a released skin VAE checkpoint's `hyper_parameters` to a SkinVAEConfig and back."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from policy.released.checkpoint import Checkpoint, CheckpointError, require_settings, settings_section
from policy.released.rig_settings import parse_vocabulary
from policy.released.tensors import EMBEDDING, VAE_PREFIX
from policy.skintokens.configuration import PERCEIVER_HEADS, SkinVAEConfig

# Fields of `model_config.model` that must be present: most of them cannot be inferred from the tensors.
_VAE_FIELDS = (
    "latent_channels",
    "num_attention_heads",
    "width_encoder",
    "width_decoder",
    "num_layers_encoder",
    "num_layers_decoder",
    "embed_frequency",
    "embed_include_pi",
    "use_pmpe",
    "is_learned_queries",
)
# Released values of settings that the tensors of a TokenRig checkpoint do not determine.
RELEASED_VAE_HEADS = 12
RELEASED_VAE_LEVELS = (8, 8, 8, 8, 8)


def is_vae_checkpoint(checkpoint: Checkpoint) -> bool:
    """Whether a checkpoint's settings are those of a skin VAE."""
    settings = checkpoint.hyper_parameters.get("model_config")
    return isinstance(settings, Mapping) and "FSQ_dict" in settings.get("model", {})


def parse_vae_config(
    vae: Checkpoint, tokens_per_skin: int | None = None, rounded_constants: bool = True
) -> SkinVAEConfig:
    """The configuration of a VAE checkpoint; `tokens_per_skin` is all its tokens if not given.

    Raises CheckpointError for any other checkpoint, and for missing or unsupported settings.
    """
    settings = settings_section(vae, "model_config")
    if not is_vae_checkpoint(vae):
        raise CheckpointError(
            f"{vae.path}: not a VAE checkpoint of the SkinTokens release (no FSQ_dict); pass its VAE, e.g. "
            "skin_vae_2_10_32768/last.ckpt"
        )
    model, sample = dict(settings["model"]), dict(settings.get("sample", {}))
    where = f"{vae.path}: model_config.model"
    require_settings(model, _VAE_FIELDS, where)
    require_settings(
        sample, ["cond_tokens", "compress_tokens", "sample_tokens"], f"{vae.path}: model_config.sample"
    )
    if settings.get("type", "fsqc") != "fsqc" or model.get("embedding_type", "frequency") != "frequency":
        raise CheckpointError(
            f"{where} is of type {settings.get('type')!r} with embedding {model.get('embedding_type')!r}; "
            "only 'fsqc' with 'frequency' is supported"
        )
    levels = tuple(int(level) for level in model["FSQ_dict"]["levels"])
    try:
        return SkinVAEConfig(
            tokens_per_skin=sample["compress_tokens"] if tokens_per_skin is None else tokens_per_skin,
            cond_tokens=sample["cond_tokens"],
            compress_tokens=sample["compress_tokens"],
            sample_tokens=sample["sample_tokens"],
            in_channels=model.get("in_channels", 4),
            cond_channels=model.get("cond_channels", 3),
            fsq_levels=levels,
            fsq_dim=model["FSQ_dict"].get("dim", len(levels)),
            rounded_constants=rounded_constants,
            **{name: model[name] for name in _VAE_FIELDS},
        )
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error


def infer_vae_config(
    rig: Checkpoint, settings: Mapping[str, Any], tokens_per_skin: int, rounded_constants: bool
) -> SkinVAEConfig:
    """The VAE's configuration from the tensors in a TokenRig checkpoint, with released values for the rest.

    `settings` is the checkpoint's `model_config`. Raises CheckpointError if tensors are missing or belong to
    a VAE other than the released one; pass that VAE's own checkpoint then.
    """
    shapes = {
        name[len(VAE_PREFIX) :]: tuple(tensor.shape)
        for name, tensor in rig.tensors.items()
        if name.startswith(VAE_PREFIX)
    }
    needed = ["model.quant.weight", "model.post_quant.weight", "model.decoder.proj_query.weight"]
    missing = [name for name in needed if name not in shapes]
    if missing:
        names = ", ".join(VAE_PREFIX + name for name in missing)
        raise CheckpointError(f"{rig.path}: lacks {names} of its skin VAE; pass a complete checkpoint")
    width_encoder, width_decoder = shapes["model.quant.weight"][1], shapes["model.post_quant.weight"][0]
    embedded = shapes["model.decoder.proj_query.weight"][1] - 3  # less the normal
    learned = shapes.get("model.encoder.learned_queries")
    down, up = shapes.get("down_perceiver.q_vec"), shapes.get("up_perceiver.q_vec")
    sample = learned[0] if learned else up[0] * PERCEIVER_HEADS if up else 32
    size = rig.tensors[EMBEDDING].shape[0] if EMBEDDING in rig.tensors else None
    codebook = math.prod(RELEASED_VAE_LEVELS)
    matches = size is None or size == parse_vocabulary(rig, codebook, tokens_per_skin).size
    if not matches or width_encoder % RELEASED_VAE_HEADS or width_decoder % RELEASED_VAE_HEADS:
        raise CheckpointError(
            f"{rig.path}: its skin VAE does not have the released size ({RELEASED_VAE_HEADS} heads, "
            f"{codebook} codes); pass the VAE's checkpoint with --vae"
        )
    try:
        return SkinVAEConfig(
            tokens_per_skin=tokens_per_skin,
            cond_tokens=int(settings.get("tokens_skin_cond", 384)),
            compress_tokens=down[0] * PERCEIVER_HEADS if down else sample,
            sample_tokens=sample,
            latent_channels=shapes["model.quant.weight"][0],
            num_attention_heads=RELEASED_VAE_HEADS,
            width_encoder=width_encoder,
            width_decoder=width_decoder,
            num_layers_encoder=_count_blocks(shapes, "model.encoder.blocks.") - 1,
            num_layers_decoder=_count_blocks(shapes, "model.decoder.blocks.") - 1,
            embed_frequency=(embedded - 3) // 6,
            is_learned_queries=learned is not None,
            fsq_levels=RELEASED_VAE_LEVELS,
            fsq_dim=shapes["model.quant.weight"][0],
            rounded_constants=rounded_constants,
        )
    except ValueError as error:
        raise CheckpointError(f"{rig.path}: {error}; pass the VAE's checkpoint with --vae") from error


def _count_blocks(names: Iterable[str], prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in names if name.startswith(prefix)})


def vae_hyper_parameters(config: SkinVAEConfig) -> dict[str, Any]:
    """`hyper_parameters` of a VAE checkpoint in the released layout."""
    return {
        "model_config": {
            "type": "fsqc",
            "sample": {
                name: getattr(config, name) for name in ("cond_tokens", "compress_tokens", "sample_tokens")
            },
            "model": {
                "embedding_type": "frequency",
                **{name: getattr(config, name) for name in ("in_channels", "cond_channels", *_VAE_FIELDS)},
                "FSQ_dict": {"levels": list(config.fsq_levels), "dim": config.fsq_dim},
            },
        },
        "transform_config": {},
        "tokenizer_config": None,
    }
