"""Converts a released TokenRig checkpoint's `hyper_parameters` to a TokenRigConfig and back."""

import ast
from collections.abc import Mapping
from typing import Any

from policy.released.checkpoint import Checkpoint, CheckpointError, require_settings, settings_section
from policy.released.tensors import EMBEDDING
from policy.skintokens.configuration import SkinVAEConfig
from policy.tokenrig.configuration import TokenRigConfig
from policy.tokenrig.mesh_encoder import MeshEncoderConfig
from policy.tokens.vocabulary import Vocabulary

# Released settings name Qwen3-0.6B and override some of its fields; these are its own values (specification,
# section 6).
QWEN3_BASE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 3072,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "max_position_embeddings": 40960,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
}
# Fields that TokenRigConfig lacks; any other value would change what the model computes.
_QWEN3_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "use_sliding_window": (False,),
    "rope_scaling": (None,),
    "attention_dropout": (0, 0.0),
}
# Defaults of the upstream mesh encoder, not those of the released checkpoint (specification, section 2).
_MESH_ENCODER_BASE: dict[str, Any] = {
    "num_freqs": 8,
    "include_pi": True,
    "qkv_bias": True,
    "use_ln_post": False,
    "token_num": 256,
    "use_full_input": True,
    "init_scale": 0.25,
    "point_feats": 3,
}


def parse_rig_config(rig: Checkpoint, codebook: int | None = None) -> TokenRigConfig:
    """The TokenRig configuration of a checkpoint; `codebook` follows from the head's size if not given.

    Raises CheckpointError for missing settings and for those that this project does not support.
    """
    settings = rig_model_settings(rig)
    tokens_per_skin = int(settings["tokens_per_skin"])
    if codebook is None:
        if EMBEDDING not in rig.tensors:
            raise CheckpointError(
                f"{rig.path}: tensors do not match the configuration; 1 missing: {EMBEDDING}"
            )
        codebook = len(rig.tensors[EMBEDDING]) - parse_vocabulary(rig, 1, tokens_per_skin).size + 1
    return TokenRigConfig(
        vocabulary=parse_vocabulary(rig, codebook, tokens_per_skin).to_dict(),
        mesh_encoder=_parse_mesh_encoder(rig, settings["mesh_encoder"]).to_dict(),
        init_scale=settings.get("init_scale"),
        **_parse_language_model(rig, settings["llm"]),
    )


def rig_model_settings(rig: Checkpoint) -> dict[str, Any]:
    """`model_config` of a TokenRig checkpoint. Raises CheckpointError for any other checkpoint."""
    settings = settings_section(rig, "model_config")
    if "llm" not in settings or "mesh_encoder" not in settings:
        kind = "a VAE checkpoint" if "FSQ_dict" in settings.get("model", {}) else "not a TokenRig checkpoint"
        raise CheckpointError(
            f"{rig.path}: this is {kind}; pass the TokenRig checkpoint, and the VAE with --vae"
        )
    require_settings(settings, ["tokens_per_skin"], f"{rig.path}: model_config")
    return settings


def parse_vocabulary(rig: Checkpoint, codebook: int, tokens_per_skin: int) -> Vocabulary:
    """The vocabulary of `tokenizer_config`, extended by a codebook. Raises CheckpointError."""
    settings = settings_section(rig, "tokenizer_config")
    where = f"{rig.path}: tokenizer_config"
    require_settings(settings, ["num_discrete", "cls_token_id", "parts_token_id"], where)
    if [float(x) for x in settings.get("continuous_range", (-1, 1))] != [-1.0, 1.0]:
        raise CheckpointError(
            f"{where}.continuous_range is {settings['continuous_range']}; only [-1, 1] is supported"
        )
    try:
        return Vocabulary(
            bins=settings["num_discrete"],
            parts=_names_by_id(settings["parts_token_id"], f"{where}.parts_token_id"),
            classes=_names_by_id(settings["cls_token_id"], f"{where}.cls_token_id"),
            codebook=codebook,
            tokens_per_skin=tokens_per_skin,
        )
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _names_by_id(table: Mapping[str, int] | None, where: str) -> tuple[str, ...]:
    """Names in the order of their ids, which must be 0, 1, 2, …"""
    table = table or {}
    names = sorted(table, key=lambda name: table[name])
    if [table[name] for name in names] != list(range(len(names))):
        raise CheckpointError(f"{where}: the ids {sorted(table.values())} must be 0, 1, 2, … without gaps")
    return tuple(names)


def _parse_mesh_encoder(rig: Checkpoint, settings: Mapping[str, Any]) -> MeshEncoderConfig:
    where = f"{rig.path}: model_config.mesh_encoder"
    require_settings(settings, ["width", "heads", "num_encoder_layers"], where)
    if settings.get("__target__", "michelangelo_encoder") != "michelangelo_encoder":
        raise CheckpointError(
            f"{where}.__target__ is {settings['__target__']!r}; only 'michelangelo_encoder' is supported"
        )
    if settings.get("query_method", False):
        raise CheckpointError(
            f"{where}.query_method is {settings['query_method']!r}; only False is supported"
        )
    own = ("width", "heads", "num_encoder_layers", *_MESH_ENCODER_BASE)
    values = {name: value for name, value in {**_MESH_ENCODER_BASE, **settings}.items() if name in own}
    if isinstance(values["token_num"], (list, tuple)):
        values["token_num"] = tuple(int(count) for count in values["token_num"])
    try:
        return MeshEncoderConfig.from_dict(values)
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _parse_language_model(rig: Checkpoint, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the language model: those of Qwen3-0.6B, overridden by the checkpoint's."""
    where = f"{rig.path}: model_config.llm"
    name = str(settings.get("pretrained_model_name_or_path", "Qwen3-0.6B"))
    if "qwen3-0.6b" not in name.lower():
        raise CheckpointError(f"{where} is based on {name!r}; only Qwen3-0.6B is supported")
    for field, values in _QWEN3_FIXED.items():
        if field in settings and settings[field] not in values:
            raise CheckpointError(f"{where}.{field} is {settings[field]!r}; only {values[0]!r} is supported")
    rope = settings.get("rope_parameters")
    if rope is not None:
        if dict(rope).get("rope_type", "default") != "default":
            raise CheckpointError(f"{where}.rope_parameters is {rope!r}; only the default type is supported")
        settings = {"rope_theta": dict(rope).get("rope_theta", QWEN3_BASE["rope_theta"]), **settings}
    return {name: settings.get(name, value) for name, value in QWEN3_BASE.items()}


def rig_hyper_parameters(config: TokenRigConfig, vae_config: SkinVAEConfig) -> dict[str, Any]:
    """`hyper_parameters` to export: those of the imported file, otherwise built from the configurations."""
    release = config.release or {}
    if "hyper_parameters" in release:
        return release["hyper_parameters"]
    if "hyper_parameters_literal" in release:
        return ast.literal_eval(release["hyper_parameters_literal"])
    vocabulary, encoder = config.get_vocabulary(), config.get_mesh_encoder()
    return {
        "model_config": {
            "tokens_per_skin": vocabulary.tokens_per_skin,
            "tokens_skin_cond": vae_config.cond_tokens,
            "pretrained_vae": "experiments/skin_vae_2_10_32768/last.ckpt",
            "mesh_encoder": {
                "__target__": "michelangelo_encoder",
                "device": "cpu",
                "dtype": "float32",
                "num_latents": 256,
                "embed_dim": 0,
                "flash": True,
                "query_method": False,
                **encoder.to_dict(),
            },
            "llm": {
                "pretrained_model_name_or_path": "Qwen/Qwen3-0.6B",
                **{name: getattr(config, name) for name in QWEN3_BASE},
            },
            **({} if config.init_scale is None else {"init_scale": config.init_scale}),
        },
        "transform_config": {
            "predict_transform": {
                "sampler": {"__target__": "mix", "num_samples": 54000, "num_vertex_samples": 16384},
                "augments": [{"__target__": "affine", "normalize_into": [-1.0, 1.0]}],
            }
        },
        "tokenizer_config": {
            "__target__": "tokenizer_part",
            "num_discrete": vocabulary.bins,
            "continuous_range": [-1, 1],
            "cls_token_id": {name: i for i, name in enumerate(vocabulary.classes)},
            "parts_token_id": {name: i for i, name in enumerate(vocabulary.parts)},
        },
    }
