"""Encoder of the skin VAE: surface points to latents of a bone (skin) or of a mesh (condition)."""

import torch
from torch import Tensor, nn

from policy.layers.queries import gather_points
from policy.skintokens.blocks import CrossBlock, SelfBlock


class Encoder(nn.Module):
    """One cross-attention block from queries to all points, then self-attention blocks over the queries.

    Source: specification, section 7.3.
    """

    def __init__(self, channels: int, width: int, heads: int, layers: int, learned_queries: int) -> None:
        super().__init__()
        self.learned_queries = nn.Parameter(torch.empty(learned_queries, width)) if learned_queries else None
        self.proj_in = nn.Linear(channels, width)
        self.blocks = nn.ModuleList(
            [CrossBlock(width, heads), *(SelfBlock(width, heads) for _ in range(layers))]
        )
        self.norm_out = nn.LayerNorm(width)

    def forward(self, features: Tensor, query_index: Tensor | None, tokens: int) -> Tensor:
        """Features (B, N, channels) to (B, tokens, C).

        Queries are the points at `query_index` (B, tokens) int64, or the first `tokens` learned queries if
        it is None.
        """
        context = self.proj_in(features.to(self.proj_in.weight.dtype))
        if query_index is not None:
            hidden = gather_points(context, query_index)
        else:
            assert self.learned_queries is not None
            hidden = self.learned_queries[:tokens].to(context.dtype).expand(len(features), -1, -1)
        hidden = self.blocks[0](hidden, context)
        for block in self.blocks[1:]:
            hidden = block(hidden)
        return self.norm_out(hidden)
