"""Settings of released checkpoints to this project's configurations and back (specification, section 2)."""

import ast
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from policy.released.checkpoint import Checkpoint, CheckpointError
from policy.skintokens.skin_vae import PERCEIVER_HEADS, SkinVAE, SkinVAEConfig
from policy.tokenrig.configuration import TokenRigConfig
from policy.tokenrig.mesh_encoder import MeshEncoderConfig
from policy.tokenrig.modeling import TokenRigForCausalLM
from policy.tokens.vocabulary import Vocabulary

VAE_PREFIX = "vae."
HEAD = "transformer.lm_head.weight"
EMBEDDING = "transformer.model.embed_tokens.weight"

# A released configuration names Qwen3-0.6B and overrides some of its fields; the rest is this (section 6).
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
# Fields that this model does not have; other values than these would change what it computes.
_QWEN3_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False,),
    "use_sliding_window": (False,),
    "rope_scaling": (None,),
    "attention_dropout": (0, 0.0),
}
# What the released mesh encoder takes where its configuration is silent.
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
# Nothing is guessed of a VAE checkpoint's settings: neither shapes nor names show most of them.
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
# Of the VAE, what neither shapes nor the rig checkpoint tell: the released values.
RELEASED_VAE_HEADS = 12
RELEASED_VAE_LEVELS = (8, 8, 8, 8, 8)

# Tables that some versions store although they follow from the configuration.
_COMPUTED = re.compile(
    r"(embedder\.(frequencies|phase)|FSQ\.(_levels|_basis|implicit_codebook)|rotary_emb\.\w*inv_freq)$"
)
_PARTS = ("vae.", "mesh_encoder.", "output_proj.", "transformer.")


@dataclass(frozen=True)
class Release:
    """A released TokenRig checkpoint, understood and checked.

    Attributes:
        config, vae_config: the models' configurations.
        model, vae: their tensors by this project's names, as stored; without the head if it is tied.
        unused, other_entries: names of the file's tensors and top-level entries that are not kept.
        notes: sentences for the user about what had to be assumed.
    """

    config: TokenRigConfig
    vae_config: SkinVAEConfig
    model: dict[str, Tensor]
    vae: dict[str, Tensor]
    unused: tuple[str, ...]
    other_entries: tuple[str, ...]
    notes: tuple[str, ...]


def understand(rig: Checkpoint, vae: Checkpoint | None = None, rounded_constants: bool = True) -> Release:
    """Configurations and tensors of a TokenRig checkpoint.

    Args:
        rig: the TokenRig checkpoint; it holds the VAE's weights as well.
        vae: the VAE checkpoint, whose configuration is needed; the released values are assumed without.
        rounded_constants: see `SkinVAEConfig`.

    Raises:
        CheckpointError: unsupported settings, missing or unexpected tensors, wrong shapes.
    """
    notes: list[str] = []
    settings = _rig_settings(rig)
    tokens_per_skin = int(settings["tokens_per_skin"])
    if vae is not None:
        vae_config = vae_config_of(vae, tokens_per_skin, rounded_constants)
        cond_tokens = settings.get("tokens_skin_cond", vae_config.cond_tokens)
        if cond_tokens != vae_config.cond_tokens:
            notes.append(
                f"the rig asks for {cond_tokens} condition latents, the VAE for {vae_config.cond_tokens}: "
                "the VAE's number is used"
            )
    else:
        vae_config = _assumed_vae_config(rig, settings, tokens_per_skin, rounded_constants)
        notes.append(
            f"no --vae given: assumed the released {vae_config.num_attention_heads} heads, FSQ levels "
            f"{list(vae_config.fsq_levels)}, frequencies with pi and PMPE for the skin VAE"
        )
    config = rig_config(rig, vae_config.codebook_size)
    expected = {
        **{VAE_PREFIX + name: shape for name, shape in vae_shapes(vae_config).items()},
        **expected_shapes(config),
    }
    unused = check_tensors(str(rig.path), rig.tensors, expected, hint=vae is None)
    tensors = {name: rig.tensors[name] for name in expected}
    if config.tie_word_embeddings:
        if not torch.equal(tensors[HEAD], tensors[EMBEDDING]):
            raise CheckpointError(
                f"{rig.path}: {HEAD} differs from {EMBEDDING} although the configuration ties them"
            )
        del tensors[HEAD]
    dtypes = {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()}
    common = max(set(dtypes.values()), key=list(dtypes.values()).count)
    config.dtype = getattr(torch, common)
    config.architectures = [TokenRigForCausalLM.__name__]
    config.release = {
        "dtype": common,
        "other_dtypes": {name: dtype for name, dtype in dtypes.items() if dtype != common},
        **_storable(rig.hyper_parameters),
    }
    return Release(
        config=config,
        vae_config=vae_config,
        model={name: t for name, t in tensors.items() if not name.startswith(VAE_PREFIX)},
        vae={name[len(VAE_PREFIX) :]: t for name, t in tensors.items() if name.startswith(VAE_PREFIX)},
        unused=unused,
        other_entries=rig.other_entries,
        notes=tuple(notes),
    )


def rig_config(rig: Checkpoint, codebook: int | None = None) -> TokenRigConfig:
    """The model's configuration; a codebook that is not given follows from the head's size.

    Raises CheckpointError for settings that this project does not have.
    """
    settings = _rig_settings(rig)
    tokens_per_skin = int(settings["tokens_per_skin"])
    if codebook is None:
        if EMBEDDING not in rig.tensors:
            raise CheckpointError(f"{rig.path}: tensors do not fit the configuration; 1 missing: {EMBEDDING}")
        codebook = len(rig.tensors[EMBEDDING]) - _vocabulary(rig, 1, tokens_per_skin).size + 1
    return TokenRigConfig(
        vocabulary=_vocabulary(rig, codebook, tokens_per_skin).to_dict(),
        mesh_encoder=_mesh_encoder(rig, settings["mesh_encoder"]).to_dict(),
        init_scale=settings.get("init_scale"),
        **_language_model(rig, settings["llm"]),
    )


def _rig_settings(rig: Checkpoint) -> dict[str, Any]:
    settings = _section(rig, "model_config")
    if "llm" not in settings or "mesh_encoder" not in settings:
        kind = "a VAE checkpoint" if "FSQ_dict" in settings.get("model", {}) else "no TokenRig checkpoint"
        raise CheckpointError(f"{rig.path}: is {kind}; give the TokenRig checkpoint, and the VAE as --vae")
    _need(settings, ["tokens_per_skin"], f"{rig.path}: model_config")
    return settings


def expected_shapes(config: TokenRigConfig) -> dict[str, tuple[int, ...]]:
    """Name to shape of every tensor of the language model and mesh encoder, the tied head included."""
    with torch.device("meta"):
        model = TokenRigForCausalLM(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def vae_shapes(config: SkinVAEConfig) -> dict[str, tuple[int, ...]]:
    """Name to shape of every tensor of the skin VAE."""
    with torch.device("meta"):
        vae = SkinVAE(config)
    return {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()}


def release_order(config: TokenRigConfig, vae_config: SkinVAEConfig) -> list[str]:
    """Names of all tensors in the order of a released file."""
    own = list(expected_shapes(config))
    parts = ("mesh_encoder.", "transformer.", "output_proj.")
    skin = (VAE_PREFIX + name for name in vae_shapes(vae_config))
    return [*skin, *(name for part in parts for name in own if name.startswith(part))]


def check_tensors(
    path: str,
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, tuple[int, ...]],
    hint: bool = False,
) -> tuple[str, ...]:
    """Compare names and shapes, return the names that nobody needs. Raises CheckpointError with all names."""
    extra = [name for name in tensors if name not in expected]
    unused = [name for name in extra if _COMPUTED.search(name) or not name.startswith(_PARTS)]
    problems = []
    missing = [name for name in expected if name not in tensors]
    if missing:
        problems.append(f"{len(missing)} missing: {', '.join(missing)}")
    unexpected = sorted(set(extra) - set(unused))
    if unexpected:
        problems.append(f"{len(unexpected)} not of this configuration: {', '.join(unexpected)}")
    wrong = [
        f"{name} (expected {expected[name]}, found {tuple(tensor.shape)})"
        for name, tensor in tensors.items()
        if name in expected and tuple(tensor.shape) != expected[name]
    ]
    if wrong:
        problems.append(f"{len(wrong)} of another shape: {', '.join(wrong)}")
    if problems:
        advice = " (is another VAE in it? pass its checkpoint as --vae)" if hint else ""
        raise CheckpointError(f"{path}: tensors do not fit the configuration{advice}; {'; '.join(problems)}")
    return tuple(unused)


# ---------------------------------------------------------------- settings


def _section(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    section = checkpoint.hyper_parameters.get(name)
    if not isinstance(section, Mapping):
        raise CheckpointError(f"{checkpoint.path}: hyper_parameters has no {name}; its sizes are unknown")
    return dict(section)


def _need(settings: Mapping[str, Any], names: Iterable[str], where: str) -> None:
    missing = [name for name in names if name not in settings]
    if missing:
        raise CheckpointError(f"{where} lacks {', '.join(missing)}; the checkpoint is not a released one")


def vae_config_of(
    vae: Checkpoint, tokens_per_skin: int | None = None, rounded_constants: bool = True
) -> SkinVAEConfig:
    """Configuration of a VAE checkpoint. Raises CheckpointError for other VAEs."""
    settings = _section(vae, "model_config")
    if "FSQ_dict" not in settings.get("model", {}):
        raise CheckpointError(f"{vae.path}: is no VAE checkpoint of the SkinTokens release (no FSQ_dict)")
    model, sample = dict(settings["model"]), dict(settings.get("sample", {}))
    where = f"{vae.path}: model_config.model"
    _need(model, _VAE_FIELDS, where)
    _need(sample, ["cond_tokens", "compress_tokens", "sample_tokens"], f"{vae.path}: model_config.sample")
    if settings.get("type", "fsqc") != "fsqc" or model.get("embedding_type", "frequency") != "frequency":
        raise CheckpointError(
            f"{where} is of type {settings.get('type')!r} with embedding {model.get('embedding_type')!r}; "
            "only 'fsqc' with 'frequency' is supported"
        )
    levels = tuple(int(level) for level in model["FSQ_dict"]["levels"])
    default_tokens = sample["compress_tokens"] if tokens_per_skin is None else tokens_per_skin
    try:
        return SkinVAEConfig(
            tokens_per_skin=default_tokens,
            cond_tokens=sample["cond_tokens"],
            compress_tokens=sample["compress_tokens"],
            sample_tokens=sample["sample_tokens"],
            in_channels=model.get("in_channels", 4),
            cond_channels=model.get("cond_channels", 3),
            latent_channels=model["latent_channels"],
            num_attention_heads=model["num_attention_heads"],
            width_encoder=model["width_encoder"],
            width_decoder=model["width_decoder"],
            num_layers_encoder=model["num_layers_encoder"],
            num_layers_decoder=model["num_layers_decoder"],
            embed_frequency=model["embed_frequency"],
            embed_include_pi=model["embed_include_pi"],
            use_pmpe=model["use_pmpe"],
            is_learned_queries=model["is_learned_queries"],
            fsq_levels=levels,
            fsq_dim=model["FSQ_dict"].get("dim", len(levels)),
            rounded_constants=rounded_constants,
        )
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _assumed_vae_config(
    rig: Checkpoint, settings: Mapping[str, Any], tokens_per_skin: int, rounded_constants: bool
) -> SkinVAEConfig:
    """The VAE's configuration from the shapes in the rig checkpoint and released values for the rest."""
    shapes = {
        name[len(VAE_PREFIX) :]: tuple(tensor.shape)
        for name, tensor in rig.tensors.items()
        if name.startswith(VAE_PREFIX)
    }
    needed = ["model.quant.weight", "model.post_quant.weight", "model.decoder.proj_query.weight"]
    missing = [name for name in needed if name not in shapes]
    if missing:
        names = ", ".join(VAE_PREFIX + name for name in missing)
        raise CheckpointError(f"{rig.path}: holds no whole skin VAE, it lacks {names}")
    width_encoder, width_decoder = shapes["model.quant.weight"][1], shapes["model.post_quant.weight"][0]
    embedded = shapes["model.decoder.proj_query.weight"][1] - 3  # and the normal
    learned = shapes.get("model.encoder.learned_queries")
    down, up = shapes.get("down_perceiver.q_vec"), shapes.get("up_perceiver.q_vec")
    sample = learned[0] if learned else up[0] * PERCEIVER_HEADS if up else 32
    words = rig.tensors[EMBEDDING].shape[0] if EMBEDDING in rig.tensors else None
    codebook = math.prod(RELEASED_VAE_LEVELS)
    fits = words is None or words == _vocabulary(rig, codebook, tokens_per_skin).size
    if not fits or width_encoder % RELEASED_VAE_HEADS or width_decoder % RELEASED_VAE_HEADS:
        raise CheckpointError(
            f"{rig.path}: its skin VAE is not of the released size ({RELEASED_VAE_HEADS} heads, {codebook} "
            "codes); pass the VAE's checkpoint as --vae"
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
            num_layers_encoder=_count(shapes, "model.encoder.blocks.") - 1,
            num_layers_decoder=_count(shapes, "model.decoder.blocks.") - 1,
            embed_frequency=(embedded - 3) // 6,
            is_learned_queries=learned is not None,
            fsq_levels=RELEASED_VAE_LEVELS,
            fsq_dim=shapes["model.quant.weight"][0],
            rounded_constants=rounded_constants,
        )
    except ValueError as error:
        raise CheckpointError(f"{rig.path}: {error}; pass the VAE's checkpoint as --vae") from error


def _count(shapes: Iterable[str], prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in shapes if name.startswith(prefix)})


def _vocabulary(rig: Checkpoint, codebook: int, tokens_per_skin: int) -> Vocabulary:
    settings = _section(rig, "tokenizer_config")
    where = f"{rig.path}: tokenizer_config"
    _need(settings, ["num_discrete", "cls_token_id", "parts_token_id"], where)
    if [float(x) for x in settings.get("continuous_range", (-1, 1))] != [-1.0, 1.0]:
        raise CheckpointError(
            f"{where}.continuous_range is {settings['continuous_range']}; only [-1, 1] is supported"
        )
    try:
        return Vocabulary(
            bins=settings["num_discrete"],
            parts=_names(settings["parts_token_id"], f"{where}.parts_token_id"),
            classes=_names(settings["cls_token_id"], f"{where}.cls_token_id"),
            codebook=codebook,
            tokens_per_skin=tokens_per_skin,
        )
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{where}: {error}") from error


def _names(table: Mapping[str, int] | None, where: str) -> tuple[str, ...]:
    """Names by id, which must count from 0."""
    table = table or {}
    names = sorted(table, key=lambda name: table[name])
    if [table[name] for name in names] != list(range(len(names))):
        raise CheckpointError(f"{where}: the ids {sorted(table.values())} do not count from 0")
    return tuple(names)


def _mesh_encoder(rig: Checkpoint, settings: Mapping[str, Any]) -> MeshEncoderConfig:
    where = f"{rig.path}: model_config.mesh_encoder"
    _need(settings, ["width", "heads", "num_encoder_layers"], where)
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


def _language_model(rig: Checkpoint, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the language model: the base's, overridden by the file's."""
    where = f"{rig.path}: model_config.llm"
    name = str(settings.get("pretrained_model_name_or_path", "Qwen3-0.6B"))
    if "qwen3-0.6b" not in name.lower():
        raise CheckpointError(f"{where} is based on {name!r}; only Qwen3-0.6B is known")
    for field, values in _QWEN3_FIXED.items():
        if field in settings and settings[field] not in values:
            raise CheckpointError(f"{where}.{field} is {settings[field]!r}; only {values[0]!r} is supported")
    rope = settings.get("rope_parameters")
    if rope is not None:
        if dict(rope).get("rope_type", "default") != "default":
            raise CheckpointError(f"{where}.rope_parameters is {rope!r}; only the default type is supported")
        settings = {"rope_theta": dict(rope).get("rope_theta", QWEN3_BASE["rope_theta"]), **settings}
    return {name: settings.get(name, value) for name, value in QWEN3_BASE.items()}


# ------------------------------------------------------------------ export


def _storable(hyper_parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Hyper-parameters for a JSON file; as a Python literal if JSON would change them."""
    plain = dict(hyper_parameters)
    try:
        if json.loads(json.dumps(plain)) == plain:
            return {"hyper_parameters": plain}
    except (TypeError, ValueError):
        pass
    text = repr(plain)
    try:
        unchanged = ast.literal_eval(text) == plain
    except (ValueError, SyntaxError):
        unchanged = False
    # What is neither JSON nor a literal is written anew at export; `--like` keeps it exactly.
    return {"hyper_parameters_literal": text} if unchanged else {}


def hyper_parameters_of(config: TokenRigConfig, vae_config: SkinVAEConfig) -> dict[str, Any]:
    """`hyper_parameters` of a released file: those it was imported with, or made from the configuration."""
    release = config.release or {}
    if "hyper_parameters" in release:
        return release["hyper_parameters"]
    if "hyper_parameters_literal" in release:
        return ast.literal_eval(release["hyper_parameters_literal"])
    words, encoder = config.get_vocabulary(), config.get_mesh_encoder()
    return {
        "model_config": {
            "tokens_per_skin": words.tokens_per_skin,
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
            "num_discrete": words.bins,
            "continuous_range": [-1, 1],
            "cls_token_id": {name: i for i, name in enumerate(words.classes)},
            "parts_token_id": {name: i for i, name in enumerate(words.parts)},
        },
    }


def vae_hyper_parameters_of(config: SkinVAEConfig) -> dict[str, Any]:
    """`hyper_parameters` of a released VAE checkpoint."""
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


def stored_dtypes(config: TokenRigConfig, names: Iterable[str]) -> dict[str, torch.dtype]:
    """Dtype in a released file of each tensor: that of the imported file, bfloat16 if there was none."""
    release = config.release or {}
    common = release.get("dtype", "bfloat16")
    others = release.get("other_dtypes", {})
    return {name: getattr(torch, others.get(EMBEDDING if name == HEAD else name, common)) for name in names}
