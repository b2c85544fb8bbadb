"""Loads a recipe's policy and checks that the recipe can sample from it and train it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import PartialState
from safetensors import SafetensorError

from data.typed_recipe import RecipeError
from policy.bundle import RigPolicy, load_model
from policy.policy_folder import PolicyError, adapter_base, find_skin_vae
from policy.skintokens.skin_vae import SkinVAE
from policy.tokens.grammar import PROMPT_LENGTH
from rl.log_prob_engine import LogProbEngine, compute_dtype
from rl.recipe import Recipe

if TYPE_CHECKING:
    from trl import GRPOConfig


def load_policy(recipe: Recipe, key: str = "policy.path") -> RigPolicy:
    """Load the recipe's policy, with its language model on this process's device.

    `key` is the recipe key that error messages refer to.

    Raises:
        RecipeError: the files cannot be loaded, `train.max_completion_length` exceeds the model's positions,
            or `data.class_name` is not in its vocabulary.
    """
    source = recipe.policy.path
    try:
        skin_vae = find_skin_vae(source, recipe.policy.skin_vae)
        model = load_model(source, device=PartialState().device)
        policy = RigPolicy(model.eval(), SkinVAE.load(skin_vae), (source, skin_vae))
    except PolicyError as error:
        raise RecipeError(f"'{key}': {error}") from error
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise RecipeError(f"'{key}': {source} cannot be loaded ({reason}); restore its files") from error
    config = policy.model.config
    room = config.max_position_embeddings - config.get_mesh_encoder().tokens - PROMPT_LENGTH
    if not 0 < recipe.train["max_completion_length"] <= room:
        raise RecipeError(
            f"'train.max_completion_length' {recipe.train['max_completion_length']} must be between 1 and "
            f"{room}: {source} has {config.max_position_embeddings} positions for mesh, prompt and rig"
        )
    name, known = recipe.data.class_name, policy.vocabulary.classes
    if name is not None and name not in known:
        raise RecipeError(f"'data.class_name' must be null or one of {', '.join(known)}, not '{name}'")
    return policy


def check_training(recipe: Recipe, args: GRPOConfig, policy: RigPolicy) -> None:
    """Refuse now (RecipeError) what the trainer would refuse only after the first evaluation."""
    if args.fp16 and args.device.type == "cpu":
        raise RecipeError("'train.fp16' needs a GPU; remove it")
    if recipe.log_probs.engine == "fast":
        precision = "bf16" if args.bf16 else "fp16" if args.fp16 else "no"
        dtype = compute_dtype(precision, policy.model.dtype)
        LogProbEngine("fast", args.device, dtype, policy.model.config)
    lora = recipe.policy.lora
    if lora is None and adapter_base(Path(recipe.policy.path)) is not None:
        raise RecipeError(
            f"'policy.path': {recipe.policy.path} holds adapters, so the KL reference would be the model "
            "without them; use the policy/ folder of that run, where they are merged"
        )
    layers = {name.rpartition(".")[2] for name, _ in policy.model.transformer.named_modules()}
    unknown = [name for name in (lora.target_modules if lora else ()) if name not in layers]
    if unknown:
        known = ", ".join(sorted(name for name in layers if name.endswith("_proj")))
        raise RecipeError(
            f"'policy.lora.target_modules': no layer is named {unknown[0]}; choose from {known}"
        )
