"""TokenRigForCausalLM: mesh encoder, projection and Qwen3 language model as a transformers model."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel, Qwen3ForCausalLM
from transformers.integrations import deepspeed
from transformers.utils import ModelOutput

from policy.tokenrig.configuration import TokenRigConfig
from policy.tokenrig.log_probs import completion_log_probs, head_logits
from policy.tokenrig.mesh_encoder import MeshEncoder, init_linear
from policy.tokenrig.packed_pass import pack_rows, packed_hidden_states
from policy.tokens.grammar import PROMPT_LENGTH, Grammar, GrammarState, Mode


@dataclass
class TokenRigOutput(ModelOutput):
    """Output of a forward pass; fields that were not requested are None.

    Attributes:
        loss: scalar float32, mean next-token cross entropy over labels other than -100.
        logits: `(B, L, vocab)` float32, position i predicts id i + 1.
        log_probs: `(B, C)` float32, nats, of the completion's tokens under the grammar.
        entropies: `(B, C)` float32, nats, of the same distributions.
        past_key_values: key/value cache of the whole sequence, conditioning included.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    log_probs: Tensor | None = None
    entropies: Tensor | None = None
    past_key_values: Any = None


class TokenRigForCausalLM(PreTrainedModel, GenerationMixin):
    """A causal language model of rig tokens, conditioned on a mesh.

    The sequence is `[T conditioning embeddings, embed(input_ids)]` at positions 0, 1, ... under a plain
    causal mask. Parameters carry the released names. Source: specification, sections 3 to 6.
    """

    config_class = TokenRigConfig
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _no_split_modules: ClassVar[list[str]] = ["Qwen3DecoderLayer"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _tied_weights_keys: ClassVar[dict[str, str]] = {
        "transformer.lm_head.weight": "transformer.model.embed_tokens.weight"
    }

    def __init__(self, config: TokenRigConfig) -> None:
        super().__init__(config)
        encoder = config.get_mesh_encoder()
        language = config.get_qwen3()
        language._attn_implementation = config._attn_implementation
        self.mesh_encoder = MeshEncoder(encoder)
        # The eps that `RMSNorm(eps=None)` resolves to for every compute dtype (specification, section 5).
        norm = nn.RMSNorm(config.hidden_size, eps=torch.finfo(torch.float32).eps)
        self.output_proj = nn.Sequential(nn.Linear(encoder.width, config.hidden_size), norm)
        self.transformer = Qwen3ForCausalLM(language)
        self._grammars: dict[Mode, Grammar] = {}
        self.post_init()

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        """See transformers; loads whole weights even if DeepSpeed ZeRO-3 is configured.

        transformers would split them while loading, so that each looks empty to whoever initialises, checks
        or uses them. DeepSpeed splits the weights when a trainer hands it the model.
        """
        configured = deepspeed._hf_deepspeed_config_weak_ref
        deepspeed._hf_deepspeed_config_weak_ref = None
        try:
            return super().from_pretrained(*arguments, **options)
        finally:
            deepspeed._hf_deepspeed_config_weak_ref = configured

    def _init_weights(self, module: nn.Module) -> None:
        # Called for every module that owns parameters; the language model initialises itself.
        scale = self.config.init_scale
        if isinstance(module, nn.Linear) and module is self.output_proj[0]:
            init_linear(module, None if scale is None else scale / self.config.hidden_size**0.5)
        elif isinstance(module, nn.Linear):
            init_linear(module, self.mesh_encoder.initial_std(module, scale))
        else:
            super()._init_weights(module)

    # ------------------------------------------------------------ embeddings

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding of the language model."""
        return self.transformer.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding of the language model."""
        self.transformer.set_input_embeddings(value)

    def get_output_embeddings(self) -> Any:
        """The language model's head, tied to the token embedding."""
        return self.transformer.get_output_embeddings()

    def set_output_embeddings(self, value: nn.Module) -> None:
        """Replace the language model's head."""
        self.transformer.set_output_embeddings(value)

    def encode_mesh(self, points: Tensor, normals: Tensor, rng: np.random.Generator | None = None) -> Tensor:
        """Encode meshes to conditioning embeddings.

        Args:
            points, normals: `(M, N, 3)` surface points in the mesh frame and their unit normals.
            rng: generator of the training draw of query points. If not given, the draw is the released,
                deterministic one: same points, same embeddings.

        Returns:
            `(M, T, hidden)` in the dtype of the weights.

        Raises:
            ValueError: points and normals have the wrong shapes.
        """
        return self.output_proj(self.mesh_encoder(points, normals, rng=rng))

    # --------------------------------------------------------------- forward

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        mesh_embeds: Tensor | None = None,
        points: Tensor | None = None,
        normals: Tensor | None = None,
        mesh_index: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_key_values: Any = None,
        use_cache: bool | None = None,
        labels: Tensor | None = None,
        completion_ids: Tensor | None = None,
        prompt_lengths: Tensor | None = None,
        completion_lengths: Tensor | None = None,
        packed: bool = False,
        grammar_mode: Mode = "strict",
        temperature: float = 1.0,
        entropy: bool = True,
        logits_to_keep: int = 0,
        return_dict: bool | None = None,
        rng: np.random.Generator | None = None,
        **kwargs: Any,
    ) -> TokenRigOutput | tuple[Any, ...]:
        """Run the language model on conditioning embeddings and ids.

        Args:
            input_ids: `(B, L)` int64.
            attention_mask: `(B, L)`, 1 at ids that may be attended to. Right padding needs no mask, because
                attention is causal. With a cache the mask may also cover the cached ids; positions to the
                left of it (the conditioning) are visible. Masked ids take no position: wherever a row is
                padded, its other ids get the numbers that they would get without padding.
            mesh_embeds: conditioning `(B, T, hidden)`, or `(M, T, hidden)` with `mesh_index`. Only in the
                first pass of incremental decoding.
            points, normals: `(M, N, 3)` meshes to encode instead; M = B, or any M with `mesh_index`.
            mesh_index: `(B,)` int64, the mesh of each row.
            inputs_embeds: `(B, L, hidden)` instead of `input_ids`.
            past_key_values, use_cache: incremental decoding, as in transformers.
            labels: `(B, L)` int64, -100 to ignore; position i - 1 predicts label i.
            completion_ids: `(B, C)` int64: return their log-probabilities instead of logits, without
                computing the logits of all positions over the whole vocabulary. They follow the prompt
                `[bos, class]` or `[bos, class, skeleton...]` in `input_ids`; a skeleton in the prompt is
                given, so it has no log-probabilities. By default they are the last C of `input_ids`.
            prompt_lengths: `(B,)` int64, at most L - C: where each row's completion begins, for prompts of
                unequal length, each followed directly by its completion and padded on the right.
            completion_lengths: `(B,)` int64, at most C: ids behind them are padding, with log-probability and
                entropy 0. By default the grammar decides, see `policy.tokenrig.log_probs`.
            packed: for `completion_ids`: run without padding, and run the conditioning and prompt that rows
                share through `mesh_index` once. Same results up to rounding; with neither `attention_mask`
                nor `inputs_embeds`. See `policy.tokenrig.packed_pass`.
            grammar_mode, temperature, entropy: for `completion_ids`, see `policy.tokenrig.log_probs`.
            logits_to_keep: compute logits of the last k positions only; 0 for all.
            return_dict: False returns a plain tuple.
            rng: generator of the training draw for `points`, see `encode_mesh`.
            kwargs: ignored arguments of trainers and `generate`.

        Returns:
            `TokenRigOutput`.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds`, or arguments that do not fit.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds")
        mesh_embeds = self._mesh_embeds(mesh_embeds, points, normals, rng)
        if completion_ids is not None:
            if packed:
                hidden, hidden_at = self._packed_hidden(
                    input_ids,
                    attention_mask,
                    mesh_embeds,
                    mesh_index,
                    completion_ids,
                    prompt_lengths,
                    completion_lengths,
                )
            else:
                hidden, hidden_at = (
                    self._completion_hidden(
                        input_ids,
                        attention_mask,
                        mesh_embeds,
                        mesh_index,
                        inputs_embeds,
                        completion_ids,
                        prompt_lengths,
                    ),
                    None,
                )
            scored = completion_log_probs(
                hidden,
                self.get_output_embeddings().weight,
                completion_ids,
                grammar := self._grammar(grammar_mode),
                temperature=temperature,
                entropy=entropy,
                mask=_completion_mask(attention_mask, completion_ids, prompt_lengths, completion_lengths),
                start=_state_after_prompt(
                    grammar, input_ids, attention_mask, completion_ids.shape[1], prompt_lengths
                ),
                hidden_at=hidden_at,
            )
            result = TokenRigOutput(log_probs=scored.log_probs, entropies=scored.entropies)
            return result.to_tuple() if return_dict is False else result

        embeds, prefix_length = self._embeds(input_ids, inputs_embeds, mesh_embeds, mesh_index)
        mask = self._full_mask(attention_mask, embeds, past_key_values)
        output = self.transformer.model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=_positions(mask, embeds.shape[1]),
            past_key_values=past_key_values,
            use_cache=bool(use_cache),
        )
        hidden = output.last_hidden_state[:, prefix_length:]
        if logits_to_keep:
            hidden = hidden[:, -logits_to_keep:]
        # Always in float32: rollouts must sample the distribution that scores `completion_ids`.
        logits = head_logits(hidden, self.get_output_embeddings().weight)
        loss = None
        if labels is not None:
            if logits.shape[1] != labels.shape[1]:
                raise ValueError("labels need the logits of all positions: set logits_to_keep to 0")
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        result = TokenRigOutput(loss=loss, logits=logits, past_key_values=output.past_key_values)
        return result.to_tuple() if return_dict is False else result

    def _mesh_embeds(
        self,
        mesh_embeds: Tensor | None,
        points: Tensor | None,
        normals: Tensor | None,
        rng: np.random.Generator | None,
    ) -> Tensor | None:
        """Conditioning (M, T, hidden) as given or encoded, None in passes without one."""
        if points is None:
            return mesh_embeds
        if normals is None or mesh_embeds is not None:
            raise ValueError("points need normals, and cannot be combined with mesh_embeds")
        return self.encode_mesh(points, normals, rng)

    def _full_mask(self, mask: Tensor | None, embeds: Tensor, past_key_values: Any) -> Tensor | None:
        """Extend a mask of the ids on the left by ones for the conditioning."""
        if mask is None or mask.ndim != 2:
            return mask
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        missing = seen + embeds.shape[1] - mask.shape[1]
        return F.pad(mask, (missing, 0), value=1) if missing > 0 else mask

    def _embeds(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        mesh_embeds: Tensor | None,
        mesh_index: Tensor | None,
    ) -> tuple[Tensor, int]:
        """Embeddings (B, T + L, hidden) of conditioning and ids, and T, 0 without conditioning."""
        embeds = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        if mesh_embeds is None:
            return embeds, 0
        mesh_index = _rows_of_meshes(mesh_embeds, mesh_index, embeds)
        return torch.cat([mesh_embeds[mesh_index].to(embeds.dtype), embeds], dim=1), mesh_embeds.shape[1]

    def completion_hidden_states(
        self,
        input_ids: Tensor,
        points: Tensor,
        normals: Tensor,
        packed: bool = False,
        completion_lengths: Tensor | None = None,
        rng: np.random.Generator | None = None,
    ) -> Tensor:
        """Hidden states that predict the ids behind `[bos, class]`, from which the head computes logits.

        Args:
            input_ids: `(B, L)` int64, padded on the right.
            points, normals: `(B, N, 3)`.
            packed, completion_lengths: see `forward`.
            rng: generator of the training draw, see `encode_mesh`.

        Returns:
            `(B, L - 2, hidden)`; arbitrary at padding.
        """
        mesh_embeds, ids = self.encode_mesh(points, normals, rng), input_ids[:, PROMPT_LENGTH:]
        if not packed:
            return self._completion_hidden(input_ids, None, mesh_embeds, None, None, ids, None)
        hidden, hidden_at = self._packed_hidden(
            input_ids, None, mesh_embeds, None, ids, None, completion_lengths
        )
        return hidden[hidden_at]

    def _packed_hidden(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        mesh_embeds: Tensor | None,
        mesh_index: Tensor | None,
        completion_ids: Tensor,
        prompt_lengths: Tensor | None,
        completion_lengths: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """Hidden states (N, H) of a packed pass, and which of them predicts each id (B, C)."""
        if input_ids is None or mesh_embeds is None or attention_mask is not None:
            raise ValueError(
                "a packed pass needs input_ids and meshes, and takes completion_lengths instead of a mask"
            )
        batch, count = completion_ids.shape
        if prompt_lengths is None:
            prompt_lengths = input_ids.new_full((batch,), input_ids.shape[1] - count)
        if completion_lengths is None:
            completion_lengths = input_ids.new_full((batch,), count)
        mesh_index = _rows_of_meshes(mesh_embeds, mesh_index, input_ids)
        rows = pack_rows(
            input_ids, prompt_lengths, completion_lengths, mesh_index, mesh_embeds.shape[1], count
        )
        return packed_hidden_states(self.transformer.model, mesh_embeds, input_ids, rows), rows.hidden_at

    def _completion_hidden(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        mesh_embeds: Tensor | None,
        mesh_index: Tensor | None,
        inputs_embeds: Tensor | None,
        completion_ids: Tensor,
        prompt_lengths: Tensor | None,
    ) -> Tensor:
        """Hidden states (B, C, H) that predict the ids of the completions; every row has its own prefix."""
        if prompt_lengths is not None and input_ids is None:
            raise ValueError("prompt_lengths need input_ids, from which the given skeletons are read")
        embeds, before = self._embeds(input_ids, inputs_embeds, mesh_embeds, mesh_index)
        count = completion_ids.shape[1]
        if not 1 <= count < embeds.shape[1]:
            raise ValueError(
                f"a completion of {count} ids needs a prompt before it; got {embeds.shape[1]} positions"
            )
        mask = self._full_mask(attention_mask, embeds, None)
        mask = None if mask is None else mask[:, :-1]
        # Nothing follows the last id, so its hidden state is not needed.
        output = self.transformer.model(
            inputs_embeds=embeds[:, :-1],
            attention_mask=mask,
            position_ids=_positions(mask, embeds.shape[1] - 1),
            use_cache=False,
        )
        hidden: Tensor = output.last_hidden_state
        if prompt_lengths is None:
            return hidden[:, -count:]
        # The id at position p - 1, the prompt's last, predicts the first of the completion.
        where = (_completion_columns(prompt_lengths, count) + before - 1)[..., None]
        return hidden.gather(1, where.expand(-1, -1, hidden.shape[2]))

    def _grammar(self, mode: Mode) -> Grammar:
        """The grammar of this vocabulary, built at first use."""
        if mode not in self._grammars:
            self._grammars[mode] = Grammar(self.config.get_vocabulary(), mode)
        return self._grammars[mode]

    @torch.no_grad()
    def next_token_logits(self, mesh_condition: Tensor, ids: Tensor) -> Tensor:
        """Logits of the next token after every id, without a grammar mask.

        Args:
            mesh_condition: `(B, T, hidden)` or `(1, T, hidden)` from `encode_mesh`.
            ids: `(B, L)` int64, starting with `[bos, class]`.

        Returns:
            `(B, L, vocab)` float32: position i predicts id i + 1.
        """
        condition = mesh_condition.expand(len(ids), -1, -1)
        return self(input_ids=ids, mesh_embeds=condition, use_cache=False).logits

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        mesh_embeds: Tensor | None = None,
        is_first_iteration: bool | None = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Hook of `generate(input_ids, mesh_embeds=...)`: passes the conditioning to the first pass only."""
        inputs = super().prepare_inputs_for_generation(
            input_ids, is_first_iteration=is_first_iteration, **kwargs
        )
        if is_first_iteration and mesh_embeds is not None:
            inputs["mesh_embeds"] = mesh_embeds
        return inputs


def _rows_of_meshes(mesh_embeds: Tensor, mesh_index: Tensor | None, rows: Tensor) -> Tensor:
    """The mesh (B,) of each of B rows."""
    count = len(mesh_embeds) if mesh_index is None else len(mesh_index)
    if count != len(rows):
        raise ValueError(f"{count} mesh embeddings for {len(rows)} rows: pass mesh_index")
    return torch.arange(count, device=rows.device) if mesh_index is None else mesh_index


def _completion_mask(
    attention_mask: Tensor | None,
    completion_ids: Tensor,
    prompt_lengths: Tensor | None,
    completion_lengths: Tensor | None,
) -> Tensor | None:
    """Mask (B, C) of the ids of completions, zero at padding; None if only the grammar tells."""
    count = completion_ids.shape[1]
    if completion_lengths is not None:
        return torch.arange(count, device=completion_ids.device) < completion_lengths[:, None]
    if attention_mask is None or prompt_lengths is None:
        return None if attention_mask is None else attention_mask[:, -count:]
    return attention_mask.gather(1, _completion_columns(prompt_lengths, count))


def _completion_columns(prompt_lengths: Tensor, count: int) -> Tensor:
    """(B, count) column of each id of the completion, behind prompts of unequal length."""
    return prompt_lengths[:, None] + torch.arange(count, device=prompt_lengths.device)


def _positions(mask: Tensor | None, count: int) -> Tensor | None:
    """Positions (B, count) of the last `count` columns of a mask of the whole sequence, None without one.

    A masked id takes no position.
    """
    if mask is None or mask.ndim != 2:
        return None
    return (mask.long().cumsum(dim=1) - 1).clamp_min(0)[:, -count:]


def _state_after_prompt(
    grammar: Grammar,
    input_ids: Tensor | None,
    attention_mask: Tensor | None,
    completion_length: int,
    prompt_lengths: Tensor | None,
) -> GrammarState | None:
    """Grammar state after prompts with a given skeleton; None after `[bos, class]`, where it starts."""
    if input_ids is None or input_ids.shape[1] - completion_length <= PROMPT_LENGTH:
        return None
    prompt = input_ids[:, : input_ids.shape[1] - completion_length]
    mask = None if attention_mask is None else attention_mask[:, : prompt.shape[1]]
    if prompt_lengths is not None:
        mask = torch.arange(prompt.shape[1], device=prompt.device) < prompt_lengths[:, None]
    return grammar.after_prompt(prompt, mask)


AutoModelForCausalLM.register(TokenRigConfig, TokenRigForCausalLM)
