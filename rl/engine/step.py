"""One decoding step of the fast engine: an in-place function over static buffers, capturable on CUDA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from policy.tokenrig.layer_math import rms_norm
from policy.tokens.grammar import Grammar, GrammarState
from rl.engine.capture import fused
from rl.engine.decode_attention import PrefixRows, decode_attention
from rl.engine.draw import DrawSettings, draw_tokens
from rl.engine.layers import after_attention, before_attention
from rl.engine.weights import SamplingWeights


@dataclass(eq=False)
class StepBuffers:
    """Everything that a step reads and writes besides the weights; R rows are in the batch.

    Attributes:
        position: (1,) int64, own position of the token to feed.
        tokens: (R,) int64, the token to feed.
        output_row: (R,) int64, row of the outputs that each row fills.
        prefix_length: (R,) int64, position of the row's first own token.
        state, bones, skin: (R,) int64, the grammar's state.
        uniforms, ids, log_probs: (N, L), of all rows of the request.
        rows: which row reads which prefix.
        prefix_of_row: (R,) int64 on the CPU; the step does not use it.
        prefix_keys, prefix_values: of each layer (M, KV, P, d).
        own_keys, own_values: of each layer (R, KV, C, d).
    """

    position: Tensor
    tokens: Tensor
    output_row: Tensor
    prefix_length: Tensor
    state: Tensor
    bones: Tensor
    skin: Tensor
    uniforms: Tensor
    ids: Tensor
    log_probs: Tensor
    rows: PrefixRows
    prefix_of_row: Tensor
    prefix_keys: list[Tensor]
    prefix_values: list[Tensor]
    own_keys: list[Tensor]
    own_values: list[Tensor]

    def shape(self) -> tuple[int, ...]:
        """What determines the shapes of a step: those of own keys, prefix keys, slots and outputs."""
        return (
            *self.own_keys[0].shape,
            *self.prefix_keys[0].shape,
            *self.rows.row_of_slot.shape,
            *self.ids.shape,
        )

    def per_row(self) -> list[Tensor]:
        """The tensors (R,)."""
        return [self.tokens, self.output_row, self.prefix_length, self.state, self.bones, self.skin]

    def changing(self) -> list[Tensor]:
        """What a step changes; keys and values are written before they are read."""
        return [self.position, self.tokens, self.state, self.bones, self.skin, self.ids, self.log_probs]

    def fixed(self) -> list[Tensor]:
        """All other tensors of a step."""
        layout = [self.rows.lengths, self.rows.slot_of_row, self.rows.row_of_slot]
        caches = [*self.prefix_keys, *self.prefix_values, *self.own_keys, *self.own_values]
        return [self.output_row, self.prefix_length, self.uniforms, *layout, *caches]


class DecodeStep:
    """The step function of one set of weights; the halves of a layer are compiled on CUDA."""

    def __init__(self, weights: SamplingWeights, grammar: Grammar) -> None:
        self.weights, self.grammar = weights, grammar
        self._before: Callable[..., tuple[Tensor, Tensor, Tensor]] = fused(
            before_attention, weights.device, batched=(0, 4, 5)
        )
        self._after: Callable[..., Tensor] = fused(after_attention, weights.device, batched=(0, 1))

    def __call__(self, buffers: StepBuffers, settings: DrawSettings) -> None:
        """Feed `tokens` at `position`, draw the next ones, and advance."""
        hidden = self._forward(buffers)
        buffers.position += 1
        self.draw(hidden, buffers, buffers.position, settings)

    def draw(self, hidden: Tensor, buffers: StepBuffers, column: Tensor, settings: DrawSettings) -> None:
        """Draw tokens from hidden states (R, hidden) into column (1,) of the outputs, and feed them next."""
        state = GrammarState(buffers.state, buffers.bones, buffers.skin)
        place = (buffers.output_row, column.expand_as(buffers.output_row))
        drawn = draw_tokens(hidden, self.weights.head, self.grammar, state, buffers.uniforms[place], settings)
        buffers.ids.index_put_(place, drawn.tokens)
        buffers.log_probs.index_put_(place, drawn.log_probs)
        after = self.grammar.step(state, drawn.tokens)
        buffers.tokens.copy_(drawn.tokens)
        buffers.state.copy_(after.state)
        buffers.bones.copy_(after.bones)
        buffers.skin.copy_(after.skin)

    def _forward(self, buffers: StepBuffers) -> Tensor:
        """Final hidden states (R, hidden) of `tokens`."""
        weights = self.weights
        x = F.embedding(buffers.tokens, weights.embedding)
        at = buffers.prefix_length + buffers.position
        cos, sin = weights.cos.index_select(0, at), weights.sin.index_select(0, at)
        for index, own in enumerate(weights.layers):
            query, key, value = self._before(
                x,
                own.input_norm,
                own.query_key_value,
                own.query_key_norm,
                cos,
                sin,
                weights.heads,
                weights.eps,
            )
            keys, values = buffers.own_keys[index], buffers.own_values[index]
            keys.index_copy_(2, buffers.position, key[:, :, None])
            values.index_copy_(2, buffers.position, value[:, :, None])
            mixed = decode_attention(
                query,
                buffers.prefix_keys[index],
                buffers.prefix_values[index],
                keys,
                values,
                buffers.position,
                buffers.rows,
            )
            x = self._after(x, mixed.flatten(1), own.output, own.mlp_norm, own.gate_up, own.down, weights.eps)
        return rms_norm(x, weights.norm, weights.eps)
