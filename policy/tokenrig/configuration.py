"""Configuration of TokenRig in transformers' format: vocabulary, mesh encoder and Qwen3 language model."""

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig, Qwen3Config

from policy.tokenrig.mesh_encoder import MeshEncoderConfig
from policy.tokens.vocabulary import Vocabulary


class TokenRigConfig(PreTrainedConfig):
    """Configuration of a TokenRig model; the defaults are the released model's.

    `vocab_size` and the special token ids follow from `vocabulary`, whatever is passed for them. Raises
    ValueError for an invalid vocabulary or mesh encoder. Source: specification, sections 2 and 6.
    """

    model_type = "tokenrig"
    # TRL and transformers read `config.auto_map` without checking that it exists.
    auto_map: ClassVar[dict[str, str]] = {}
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vocabulary: dict[str, Any] | None = None
    """Fields of `Vocabulary`; null for the released vocabulary of 33,036 ids.
    Source: specification, section 9.1."""

    mesh_encoder: dict[str, Any] | None = None
    """Fields of `MeshEncoderConfig`; null for the released encoder. Source: specification, section 4."""

    hidden_size: int = 896
    """Channels of the language model's residual stream and embeddings; at least 1.
    Source: specification, section 6."""

    num_hidden_layers: int = 28
    """Transformer layers of the language model; at least 1. Source: specification, section 6."""

    num_attention_heads: int = 16
    """Query heads per layer; a multiple of `num_key_value_heads`. Source: specification, section 6."""

    num_key_value_heads: int = 8
    """Key/value heads per layer; a divisor of `num_attention_heads`. Source: specification, section 6."""

    head_dim: int = 128
    """Channels per head; even, independent of `hidden_size`. Source: specification, section 6."""

    intermediate_size: int = 3072
    """Hidden channels of each gated MLP; at least 1. Source: specification, section 6."""

    rms_norm_eps: float = 1e-6
    """Epsilon of the language model's RMSNorm layers; above 0. Source: specification, section 6."""

    rope_theta: float = 1e6
    """Base of the rotary position embedding; above 0. Source: specification, section 6."""

    max_position_embeddings: int = 3192
    """Longest sequence in tokens, conditioning included; at least 1. Source: specification, section 6."""

    initializer_range: float = 0.02
    """Standard deviation of the language model's initial weights; above 0.
    Source: transformers, Qwen3Config."""

    tie_word_embeddings: bool = True
    """Whether the head shares the token embedding's weights. Source: specification, section 6."""

    init_scale: float | None = None
    """Standard deviation of initial mesh encoder and projection weights times sqrt(width); above 0. Null:
    the encoder uses its own `init_scale`, the projection PyTorch's default.
    Source: specification, section 4."""

    release: dict[str, Any] | None = None
    """Dtypes and hyper-parameters of the imported checkpoint, for export only; null if not imported.
    Source: this project."""

    skin_codes: str | None = None
    """`SkinVAE.code_digest` of the skin VAE whose SkinTokens the model writes; null if not known, as in
    released checkpoints. Source: this project."""

    use_cache: bool = True
    """Whether generation caches keys and values. Source: transformers, Qwen3Config."""

    vocab_size: int | None = None
    """Number of token ids, derived from `vocabulary`. Source: specification, section 9.1."""

    bos_token_id: int | None = None
    """Id of the first token, derived from `vocabulary`. Source: specification, section 9.1."""

    eos_token_id: int | None = None
    """Id of the final eos, derived from `vocabulary`. Source: specification, section 9.1."""

    pad_token_id: int | None = None
    """Id of the padding token, derived from `vocabulary`. Source: specification, section 9.1."""

    def __post_init__(self, **kwargs: Any) -> None:
        vocabulary = Vocabulary() if self.vocabulary is None else Vocabulary.from_dict(self.vocabulary)
        self.vocabulary = vocabulary.to_dict()
        self.vocab_size = vocabulary.size
        self.bos_token_id, self.eos_token_id, self.pad_token_id = (
            vocabulary.bos,
            vocabulary.eos,
            vocabulary.pad,
        )
        self.mesh_encoder = MeshEncoderConfig.from_dict(self.mesh_encoder or {}).to_dict()
        super().__post_init__(**kwargs)

    def get_vocabulary(self) -> Vocabulary:
        """The vocabulary as an object."""
        assert self.vocabulary is not None
        return Vocabulary.from_dict(self.vocabulary)

    def get_mesh_encoder(self) -> MeshEncoderConfig:
        """The mesh encoder's configuration as an object."""
        assert self.mesh_encoder is not None
        return MeshEncoderConfig.from_dict(self.mesh_encoder)

    def get_qwen3(self) -> Qwen3Config:
        """The language model's configuration as transformers' Qwen3Config."""
        return Qwen3Config(
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            num_key_value_heads=self.num_key_value_heads,
            head_dim=self.head_dim,
            intermediate_size=self.intermediate_size,
            rms_norm_eps=self.rms_norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": self.rope_theta},
            max_position_embeddings=self.max_position_embeddings,
            initializer_range=self.initializer_range,
            tie_word_embeddings=self.tie_word_embeddings,
            use_cache=self.use_cache,
            bos_token_id=self.bos_token_id,
            eos_token_id=self.eos_token_id,
            pad_token_id=self.pad_token_id,
        )


AutoConfig.register("tokenrig", TokenRigConfig)
