"""Weights that the fast engine samples with: a copy of the language model's, merged, stacked and packed."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from policy.tokenrig.layer_math import rotary_tables
from policy.tokens.grammar import PhaseSlices

# Rows that oneDNN lays a weight out for; any number of rows can be multiplied with it.
_ROWS_HINT = 32


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """`x @ weight.T`, (n, in) to (n, out) in the dtype of x; the weight may be laid out for oneDNN."""
    if _is_packed(weight):
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
        return result
    return F.linear(x, weight)


def add_linear(residual: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """`residual + x @ weight.T`, (n, out)."""
    if _is_packed(weight):
        result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual, weight, None, "add")
        return result
    return residual + F.linear(x, weight)


@dataclass(eq=False)
class LayerWeights:
    """One decoder layer: norms, and projections stacked along their outputs.

    input_norm, mlp_norm: (hidden,). query_key_value: ((H + 2 KV) d, hidden). query_key_norm: (H + KV, d), a
    row per head. output: (hidden, H d). gate_up: (2 inner, hidden). down: (hidden, inner).
    """

    input_norm: Tensor
    query_key_value: Tensor
    query_key_norm: Tensor
    output: Tensor
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor


@dataclass(eq=False)
class HeadWeights:
    """The tied head. skeleton, skin: the rows of each phase, float32 (CPU). full: (V, hidden) (CUDA)."""

    skeleton: Tensor | None = None
    skin: Tensor | None = None
    full: Tensor | None = None


class SamplingWeights:
    """A copy of the language model of `model` in `dtype`, with LoRA adapters merged into it.

    model: TokenRigForCausalLM, bare or wrapped by PEFT. Under DDP and DeepSpeed ZeRO-2 every process holds
    whole parameters, so nothing is gathered. The model is not changed.

    On CUDA all tensors keep their addresses, so that a captured graph sees refreshed values. On a CPU in
    float32, projections are laid out for oneDNN at each refresh, which is two to three times as fast at
    tens of rows. The head is float32 there in any dtype (rounded to it first): a bfloat16 product rounds its
    result, which must not happen to logits.

    Attributes:
        layers, norm, head, embedding: the weights; norm (hidden,), embedding (V, hidden).
        cos, sin: rotary tables (positions, d / 2), float32.
    """

    @torch.no_grad()
    def __init__(self, model: Any, slices: PhaseSlices, dtype: torch.dtype) -> None:
        self._model = model.get_base_model() if hasattr(model, "get_base_model") else model
        core = self._model.transformer.model
        config = core.config
        self.device, self.dtype, self._slices = core.embed_tokens.weight.device, dtype, slices
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.eps = config.head_dim, config.rms_norm_eps
        self.cos, self.sin = rotary_tables(
            torch.arange(config.max_position_embeddings, device=self.device),
            self.head_dim,
            config.rope_parameters["rope_theta"],
        )
        self._packs = _can_pack(self.device, dtype)
        self.layers = [self._read_layer(layer) for layer in core.layers]
        self.norm, self.embedding = self._copy(core.norm.weight), self._copy(merged_weight(core.embed_tokens))
        self.head = self._read_head()

    @torch.no_grad()
    def refresh(self) -> None:
        """Adopt the model's current weights, one layer at a time."""
        core = self._model.transformer.model
        for own, layer in zip(self.layers, core.layers, strict=True):
            _adopt(own, self._read_layer(layer))
        self.norm.copy_(core.norm.weight)
        self.embedding.copy_(merged_weight(core.embed_tokens))
        _adopt(self.head, self._read_head())

    def tensors(self) -> list[Tensor]:
        """All tensors of the step, whose addresses a captured graph depends on."""
        own = [self.norm, self.embedding, self.cos, self.sin]
        return own + [tensor for part in (*self.layers, self.head) for tensor in _tensors(part)]

    def _read_head(self) -> HeadWeights:
        head = merged_weight(self._model.get_output_embeddings()).detach()
        if self.device.type != "cpu":
            return HeadWeights(full=self._copy(head))
        rounded, packs = head.to(self.dtype).float(), _can_pack(self.device, torch.float32)
        return HeadWeights(
            skeleton=_packed(rounded[self._slices.skeleton], packs),
            skin=_packed(rounded[self._slices.skin], packs),
        )

    def _read_layer(self, layer: Any) -> LayerWeights:
        attention, mlp = layer.self_attn, layer.mlp
        norms = [attention.q_norm.weight.expand(self.heads, -1)]
        norms.append(attention.k_norm.weight.expand(self.kv_heads, -1))
        return LayerWeights(
            input_norm=self._copy(layer.input_layernorm.weight),
            query_key_value=self._stack(attention.q_proj, attention.k_proj, attention.v_proj),
            query_key_norm=self._copy(torch.cat(norms)),
            output=self._stack(attention.o_proj),
            mlp_norm=self._copy(layer.post_attention_layernorm.weight),
            gate_up=self._stack(mlp.gate_proj, mlp.up_proj),
            down=self._stack(mlp.down_proj),
        )

    def _copy(self, weight: Tensor) -> Tensor:
        return weight.detach().to(self.dtype, copy=True)

    def _stack(self, *modules: nn.Module) -> Tensor:
        stacked = torch.cat([merged_weight(module).to(self.dtype) for module in modules])
        return _packed(stacked, self._packs)


def unsupported(model: Any) -> str | None:
    """Why the fast engine cannot sample from this model, None if it can."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config, core = base.transformer.model.config, base.transformer.model
    kind = core.embed_tokens.weight.device.type
    rope = config.rope_parameters
    findings = {
        f"it runs on CUDA and CPUs, not on {kind}": kind not in ("cuda", "cpu"),
        "it has no attention biases (attention_bias)": config.attention_bias,
        "it has no sliding windows (layer_types)": set(config.layer_types) != {"full_attention"},
        f"it computes SiLU, not {config.hidden_act}": config.hidden_act != "silu",
        f"it knows plain rotary embeddings, not {rope.get('rope_type')}": rope.get("rope_type", "default")
        != "default",
        "it merges plain LoRA adapters on linear layers only": any(map(_odd_adapter, base.modules())),
    }
    return next((reason for reason, found in findings.items() if found), None)


def _odd_adapter(module: nn.Module) -> bool:
    """Whether a module has an adapter that is not a product of two matrices added to its weight."""
    own: Any = module
    if not hasattr(own, "get_base_layer"):
        return False
    if not hasattr(own, "lora_A") or not hasattr(own, "get_delta_weight"):
        return True
    biased = any(getattr(layer, "bias", None) is not None for layer in own.lora_B.values())
    return biased or bool(getattr(own, "use_dora", None) and any(own.use_dora.values()))


def merged_weight(module: nn.Module) -> Tensor:
    """Weight of a layer with its active LoRA adapters added."""
    own: Any = module
    if not hasattr(own, "get_delta_weight"):
        weight: Tensor = own.weight
        return weight
    weight = own.get_base_layer().weight
    if own.merged or own.disable_adapters:
        return weight
    for adapter in own.active_adapters:
        if adapter in own.lora_A or adapter in own.lora_embedding_A:
            weight = weight + own.get_delta_weight(adapter).to(weight.dtype)
    return weight


def _tensors(part: Any) -> list[Tensor]:
    values = (getattr(part, field.name) for field in fields(part))
    return [value for value in values if value is not None]


def _adopt(old: Any, new: Any) -> None:
    """Take over the values of `new`, in place except for oneDNN's layout, which cannot be copied into."""
    for field in fields(old):
        own, other = getattr(old, field.name), getattr(new, field.name)
        if own is None or own.is_mkldnn:
            setattr(old, field.name, other)
        else:
            own.copy_(other)


def _is_packed(weight: Tensor) -> bool:
    return not torch.compiler.is_compiling() and weight.is_mkldnn


def _packed(weight: Tensor, packs: bool) -> Tensor:
    if not packs:
        return weight
    laid_out: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, _ROWS_HINT)
    return laid_out


def _can_pack(device: torch.device, dtype: torch.dtype) -> bool:
    if device.type != "cpu" or dtype != torch.float32 or not torch.backends.mkldnn.is_available():
        return False
    # Operations that Inductor uses; builds without oneDNN lack them.
    names = ("_reorder_linear_weight", "_linear_pointwise")
    return all(hasattr(torch.ops.mkldnn, name) for name in names)
