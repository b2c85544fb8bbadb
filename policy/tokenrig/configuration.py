"""Configuration of TokenRig: the vocabulary, the mesh encoder and the Qwen3 language model in one file."""

from typing import Any, ClassVar

from transformers import AutoConfig, PreTrainedConfig, Qwen3Config

from policy.tokenrig.mesh_encoder import MeshEncoderConfig
from policy.tokens.vocabulary import Vocabulary


class TokenRigConfig(PreTrainedConfig):
    """Sizes of a TokenRig model; the defaults are the released ones (specification, sections 2 and 6).

    Attributes:
        vocabulary: `Vocabulary.to_dict()`; the released vocabulary if not given. `vocab_size` and the special
            token ids follow from it, whatever is passed for them.
        mesh_encoder: `MeshEncoderConfig.to_dict()`; the released encoder if not given.
        init_scale: if set, all mesh encoder and projection weights start as N(0, init_scale / sqrt(width)).
        release: settings of the released file this model was imported from; only an export reads them.

    The others are those of `Qwen3Config`.
    """

    model_type = "tokenrig"
    # TRL and transformers read `config.auto_map` without asking whether there is one.
    auto_map: ClassVar[dict[str, str]] = {}
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    vocabulary: dict[str, Any] | None = None
    mesh_encoder: dict[str, Any] | None = None
    hidden_size: int = 896
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int = 8
    head_dim: int = 128
    intermediate_size: int = 3072
    rms_norm_eps: float = 1e-6
    rope_theta: float = 1e6
    max_position_embeddings: int = 3192
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    init_scale: float | None = None
    release: dict[str, Any] | None = None
    use_cache: bool = True
    vocab_size: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        words = Vocabulary() if self.vocabulary is None else Vocabulary.from_dict(self.vocabulary)
        self.vocabulary = words.to_dict()
        self.vocab_size = words.size
        self.bos_token_id, self.eos_token_id, self.pad_token_id = words.bos, words.eos, words.pad
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
        """The configuration of the language model inside."""
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
