"""Configuration of the skin VAE: sizes and switches, released values as defaults."""

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

PERCEIVER_HEADS = 8


@dataclass(frozen=True)
class SkinVAEConfig:
    """Sizes and switches of the skin VAE; the defaults are the released model's.

    Also the `model` section of stage-1 recipes. Raises ValueError for sizes that do not fit each other.
    Source: specification, section 7.
    """

    tokens_per_skin: int = 4
    """SkinTokens per bone that `encode_skin` returns by default and TokenRig generates; at least
    1, at most `sample_tokens` with learned queries, equal to `compress_tokens` with perceivers.
    Source: specification, section 2."""

    cond_tokens: int = 384
    """Condition latents per mesh that the decoder attends to; at least 1.
    Source: specification, section 7.3."""

    compress_tokens: int = 32
    """SkinTokens per bone after the down perceiver; set it to `sample_tokens` for no perceivers, otherwise to
    a multiple of 8. Source: specification, section 7.5."""

    sample_tokens: int = 32
    """Learned queries, and so the maximum number of SkinTokens per bone; at least 1, a multiple of 8 with
    perceivers. Source: specification, sections 7.3 and 7.5."""

    in_channels: int = 4
    """Encoder channels besides the embedded position: normal (3) and skinning weight (1); always 4.
    Source: specification, section 7.3."""

    cond_channels: int = 3
    """Channels of condition and query points besides the embedded position: the normal; always 3.
    Source: specification, section 7.3."""

    latent_channels: int = 512
    """Channels of latents, code vectors and condition latents; at least 1, equal to `fsq_dim`, a multiple of
    8 with perceivers. Source: specification, section 7.3."""

    num_attention_heads: int = 12
    """Heads of every attention layer; a divisor of both widths. Source: specification, section 7.2."""

    width_encoder: int = 768
    """Channels of the skin and condition encoders' layers; a multiple of `num_attention_heads`.
    Source: specification, section 7.3."""

    width_decoder: int = 768
    """Channels of the decoder's layers; a multiple of `num_attention_heads`.
    Source: specification, section 7.4."""

    num_layers_encoder: int = 2
    """Self-attention layers of each encoder after its cross-attention layer; at least 0.
    Source: specification, section 7.3."""

    num_layers_decoder: int = 10
    """Self-attention layers of the decoder before its cross-attention layer; at least 0.
    Source: specification, section 7.4."""

    embed_frequency: int = 8
    """Frequencies per axis of the positional embedding; at least 1. Source: specification, section 7.1."""

    embed_include_pi: bool = True
    """Whether the embedding uses frequencies pi 2^i instead of 2^i. Source: specification, section 7.1."""

    use_pmpe: bool = True
    """Whether the embedding adds a phase-shifted slow wave to each sine and cosine (PMPE).
    Source: specification, section 7.1."""

    is_learned_queries: bool = True
    """Whether the skin encoder's queries are learned instead of sampled surface points.
    Source: specification, section 7.3."""

    fsq_levels: tuple[int, ...] = (8, 8, 8, 8, 8)
    """Quantisation levels of each FSQ dimension, 2 or more each; their product is the codebook size.
    Source: specification, section 8."""

    fsq_dim: int = 512
    """Channels before FSQ's projection; equal to `latent_channels`. There is no projection if it equals the
    number of `fsq_levels`. Source: specification, section 8."""

    rounded_constants: bool = True
    """Whether the embedding's frequencies and phases are rounded to bf16, as in released inference; turn it
    off for a model trained from scratch. Source: specification, section 14."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "fsq_levels", tuple(self.fsq_levels))
        for width in (self.width_encoder, self.width_decoder):
            if width % self.num_attention_heads:
                raise ValueError(
                    f"width {width} is not a multiple of num_attention_heads {self.num_attention_heads}"
                )
        if self.fsq_dim != self.latent_channels:
            raise ValueError(f"fsq_dim {self.fsq_dim} must equal latent_channels {self.latent_channels}")
        if (self.in_channels, self.cond_channels) != (4, 3):
            raise ValueError("in_channels must be 4 (normal, weight) and cond_channels 3 (normal)")
        if self.has_perceivers:
            for name in ("compress_tokens", "sample_tokens"):
                if getattr(self, name) % PERCEIVER_HEADS:
                    raise ValueError(f"{name} must be a multiple of {PERCEIVER_HEADS} for the perceivers")
            if self.tokens_per_skin != self.compress_tokens:
                raise ValueError("with perceivers tokens_per_skin must equal compress_tokens")
        elif self.is_learned_queries and self.tokens_per_skin > self.sample_tokens:
            raise ValueError(
                f"tokens_per_skin {self.tokens_per_skin} exceeds the {self.sample_tokens} learned queries"
            )

    @property
    def has_perceivers(self) -> bool:
        """Whether perceivers resample the latents before and after the quantiser (section 7.5)."""
        return self.compress_tokens != self.sample_tokens

    @property
    def codebook_size(self) -> int:
        """Number of different SkinTokens."""
        return math.prod(self.fsq_levels)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {**asdict(self), "fsq_levels": list(self.fsq_levels)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "SkinVAEConfig":
        """Inverse of `to_dict`; raises ValueError naming unknown keys."""
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown skin VAE setting {', '.join(unknown)}")
        return cls(**values)
