"""Variants of GRPO that the `train` section offers: what each does to a rig's tokens, and its paper."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """One variant: keys of `train` that select it, with values that work, its meaning and its source.

    keys: what the variant is. needs: what else it needs. paper: short name, and number on arXiv if it has
    one. effect: keys of `train` that make it act within two updates of a tiny policy, for the test.
    """

    keys: Mapping[str, Any]
    text: str
    paper: tuple[str, str | None]
    needs: Mapping[str, Any] = field(default_factory=dict)
    effect: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The variant as a recipe writes it, such as `loss_type: dapo`."""
        return ", ".join(f"{key}: {_written(value)}" for key, value in self.keys.items())


def _written(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


_GRPO = ("DeepSeekMath", "2402.03300")
_DAPO = ("DAPO", "2503.14476")
_DR_GRPO = ("Dr. GRPO", "2503.20783")
_DEEPSEEK = ("DeepSeek-V3.2", "2512.02556")

VARIANTS: tuple[Variant, ...] = (
    Variant(
        {"loss_type": "grpo"},
        "The paper's loss and the default: the mean over a rig's tokens, then over rigs. Every rig counts "
        "the same, so a token of a long rig counts less than one of a short rig.",
        _GRPO,
    ),
    Variant(
        {"loss_type": "dapo"},
        "The mean over all tokens of a step: every token counts the same, and long rigs count more.",
        _DAPO,
    ),
    Variant(
        {"loss_type": "bnpo"},
        "As `dapo`, but the mean over the tokens of a micro-batch, so the result depends a little on how a "
        "step is split into micro-batches.",
        ("TRL's own", None),
    ),
    Variant(
        {"loss_type": "dr_grpo"},
        "The sum over tokens, divided by rigs × `train.max_completion_length`: no bias by length. Rigs are "
        "far shorter than that limit, so the loss is small beside `grpo`'s, and so is its weight against "
        "`train.max_grad_norm`; lower the limit to what your rigs need. Goes with `scale_rewards: none`.",
        _DR_GRPO,
    ),
    Variant(
        {"loss_type": "luspo"},
        "A loss of whole rigs: one ratio per rig, its loss multiplied by its length, so that long rigs are "
        "not at a disadvantage. It needs `importance_sampling_level: sequence`.",
        ("LUSPO", "2602.05261"),
        needs={"importance_sampling_level": "sequence"},
    ),
    Variant(
        {"loss_type": "cispo"},
        "Clips the importance ratio itself, at most `epsilon_high` (not 1 + it), and keeps the gradient of "
        "every token; `grpo` drops that of clipped ones. `epsilon_high` has to be set, at least 1; ScaleRL "
        "(arXiv 2510.13786) recommends 5.",
        ("MiniMax-M1", "2506.13585"),
        needs={"epsilon_high": 5.0},
        effect={"epsilon_high": 1.0},
    ),
    Variant(
        {"loss_type": "sapo"},
        "A smooth gate instead of a clip: tokens fade out as their ratio leaves 1. "
        "`sapo_temperature_pos` (1) and `sapo_temperature_neg` (1.05) say how fast for positive and negative "
        "advantages.",
        ("SAPO", "2511.20347"),
    ),
    Variant(
        {"loss_type": "vespo"},
        "Weighs every rig by a smooth function of its whole ratio w, φ(w) = e^λ · w^k · e^(−λw), without a "
        "clip; `vespo_k_pos`, `vespo_lambda_pos`, `vespo_k_neg` and `vespo_lambda_neg` shape it.",
        ("VESPO", "2602.10693"),
    ),
    Variant(
        {"importance_sampling_level": "sequence"},
        "One ratio per rig, the geometric mean of its tokens', clipped as a whole. It stays far nearer to 1 "
        "than single tokens' ratios, so set a narrower clip; the paper uses `epsilon: 3e-4` and "
        "`epsilon_high: 4e-4`. Refused with `rewards.credit: phase`.",
        ("GSPO", "2507.18071"),
        effect={"epsilon": 0.02},
    ),
    Variant(
        {"scale_rewards": "batch"},
        "Divides advantages by the standard deviation of the whole step instead of the group's: groups in "
        "which all rigs are nearly alike are not blown up.",
        ("Lite PPO", "2508.08221"),
    ),
    Variant(
        {"scale_rewards": "none"},
        "Does not divide at all: meshes whose rigs differ more count more. The total reward spans 0 to 8 "
        "with the paper's weights, so advantages are not of the order of 1.",
        _DR_GRPO,
    ),
    Variant(
        {"multi_objective_aggregation": "normalize_then_sum"},
        "Normalises each reward within its group before the weighted sum, and the sum over the step: a "
        "reward with a small spread, such as sparsity, counts as its weight says. `scale_rewards` has no "
        "effect then, and is refused.",
        ("GDPO", "2601.05242"),
    ),
    Variant(
        {"epsilon_high": 0.28},
        "A wider upper clip, 1 + `epsilon_high`, than the lower one, 1 − `epsilon`: unlikely tokens with a "
        "good outcome may grow further.",
        _DAPO,
    ),
    Variant(
        {"delta": 4.0},
        "Bounds the ratio also where GRPO does not, for negative advantages: one token that became much more "
        "likely cannot dominate a step. It must be above the upper clip.",
        ("INTELLECT-2", "2505.07291"),
        effect={"delta": 1.21},
    ),
    Variant(
        {"mask_truncated_completions": True},
        "Leaves rigs that `train.max_completion_length` cut off out of the loss. They have a reward of 0, so "
        "without it the policy learns to finish; with it, it does not.",
        _DAPO,
    ),
    Variant(
        {"top_entropy_quantile": 0.2},
        "Trains only the share of tokens with the highest entropy, where the policy decides something; "
        "tokens that the grammar forces have none. KL still covers all tokens.",
        ("Beyond the 80/20 rule", "2506.01939"),
    ),
    Variant(
        {"entropy_coef": 0.01},
        "Adds the mean entropy of a token, times this, to the objective: keeps rollouts of a group different "
        "from each other.",
        ("A3C", "1602.01783"),
    ),
    Variant(
        {"use_adaptive_entropy": True},
        "Raises and lowers `entropy_coef` by `entropy_coef_delta` per step, between `entropy_coef_min` and "
        "`entropy_coef_max`, so that the entropy stays near `entropy_target`; set the target near the "
        "`entropy` that the first steps log. A checkpoint keeps the coefficient.",
        ("Skywork-OR1", "2505.22312"),
        effect={"entropy_target": 50.0, "entropy_coef_delta": 0.5},
    ),
    Variant(
        {"off_policy_mask_threshold": 0.5},
        "Leaves rigs with a negative advantage out of the loss if the policy has moved away from the one "
        "that sampled them by more than this, as mean log-ratio per token. Refused with "
        "`rewards.credit: phase`.",
        _DEEPSEEK,
        effect={"off_policy_mask_threshold": 1e-6},
    ),
    Variant(
        {"use_bias_correction_kl": False},
        "TRL multiplies the KL term by the importance ratio, which makes its gradient that of the reverse KL "
        "(with one ratio per token). False leaves the factor out, as the GRPO paper does.",
        _DEEPSEEK,
    ),
    Variant(
        {"beta": 0.0},
        "No KL term, and no reference policy in memory: nothing keeps the policy near where it started but "
        "the learning rate.",
        _DAPO,
    ),
    Variant(
        {"num_iterations": 2},
        "Updates per batch of rollouts (μ); `steps_per_generation` has the same effect with other rows in "
        "each update. With a single update the ratio is 1, and no clip, gate or mask above acts.",
        _GRPO,
    ),
)
