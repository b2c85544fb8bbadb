"""Decoder of the skin VAE: code vectors and condition latents to skinning weights at query points."""

from torch import Tensor, nn

from policy.skintokens.blocks import CrossBlock, SelfBlock


class Decoder(nn.Module):
    """Self-attention over the tokens of a bone, then cross attention from query points to them.

    The two inputs meet only in the last block, so each side's projections can be computed once and reused.
    Source: specification, section 7.4.
    """

    def __init__(self, channels: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            [*(SelfBlock(width, heads) for _ in range(layers)), CrossBlock(width, heads)]
        )
        self.proj_query = nn.Linear(channels, width)
        self.norm_out = nn.LayerNorm(width)
        self.proj_out = nn.Linear(width, 1)

    def states(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """(B, T, C) tokens of bones to keys and values (B, H, T, d) of the cross-attention block."""
        for block in self.self_blocks:
            hidden = block(hidden)
        return self.cross.attn2.keys_values(hidden)

    def query_states(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """(B, Q, channels) features of query points to the residual (B, Q, C) and queries (B, H, Q, d)."""
        residual = self.proj_query(features.to(self.proj_query.weight.dtype))
        return residual, self.cross.queries(residual)

    def logits(self, residual: Tensor, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(B, Q) float32 logits; a first axis of 1 in `residual` and `query` is shared by all bones."""
        hidden = self.cross.finish(residual, query, key, value)
        return self.proj_out(self.norm_out(hidden)).squeeze(-1).float()

    @property
    def self_blocks(self) -> list[SelfBlock]:
        """The self-attention blocks."""
        return [block for block in self.blocks if isinstance(block, SelfBlock)]

    @property
    def cross(self) -> CrossBlock:
        """The last block, from query points to tokens."""
        block = self.blocks[-1]
        assert isinstance(block, CrossBlock)
        return block
