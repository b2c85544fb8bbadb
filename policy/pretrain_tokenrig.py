"""Stage 2: supervised training of TokenRig to write the rig of a mesh, the FSQ-CVAE frozen."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from data.command_line import run_command
from data.typed_recipe import RecipeError, build, read_recipe
from policy.bundle import PolicyError, RigPolicy, check_replaceable, find_skin_vae, load_model
from policy.pretraining.loop import (
    LoopRecipe,
    Losses,
    barrier_on_exit,
    check_same_sizes,
    is_main_process,
    run_training,
    start_run,
)
from policy.pretraining.rig_examples import RigDataRecipe, RigExamples, skin_points
from policy.skintokens.skin_vae import SkinVAE
from policy.tokenrig.configuration import TokenRigConfig
from policy.tokenrig.mesh_encoder import MeshEncoderConfig
from policy.tokenrig.modeling import TokenRigForCausalLM
from policy.tokens.skeleton_tokenizer import rig_tokens, tokenize_skeleton
from policy.tokens.vocabulary import Vocabulary


@dataclass(frozen=True)
class LanguageModelRecipe:
    """Sizes of the Qwen3-style language model."""

    hidden_size: int = 896
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int = 8
    head_dim: int = 128
    intermediate_size: int = 3072
    max_position_embeddings: int = 3192


@dataclass(frozen=True)
class TokenRigRecipe:
    """Stage 2. The first `skeleton_only_steps` learn the skeleton part alone, which needs no SkinTokens.

    `start_from`: go on from the TokenRig of this policy directory, of the same sizes, rather than from random
    weights (see `initial_model` for another codebook). Its CVAE is not taken along: `skin_vae` names the one
    to use. `class_name`: of rigs that do not bring a class of the vocabulary themselves, as prepared ones
    may. `own_token_share`: see `with_own_skin_tokens`; of most use to a model that writes fair SkinTokens.
    """

    start_from: str | None = None
    skin_vae: str = "checkpoints/small/skin_vae"
    class_name: str | None = "articulation"
    mesh_encoder: MeshEncoderConfig = field(default_factory=MeshEncoderConfig)
    language_model: LanguageModelRecipe = field(default_factory=LanguageModelRecipe)
    data: RigDataRecipe = field(default_factory=RigDataRecipe)
    encoder_points: int = 512
    skeleton_only_steps: int = 0
    own_token_share: float = 0.0
    loop: LoopRecipe = field(default_factory=LoopRecipe)


def load_recipe(path: str, overrides: Sequence[str]) -> TokenRigRecipe:
    """Read and check a stage-2 recipe (RecipeError names what is wrong)."""
    recipe = build(TokenRigRecipe, read_recipe(path, overrides))
    for name, least in (("encoder_points", 1), ("skeleton_only_steps", 0)):
        if getattr(recipe, name) < least:
            raise RecipeError(f"'{name}' must be at least {least}, not {getattr(recipe, name)}")
    if not 0 <= recipe.own_token_share <= 1:
        raise RecipeError(f"'own_token_share' must be from 0 to 1, not {recipe.own_token_share}")
    classes = Vocabulary().classes
    if recipe.start_from is None and recipe.class_name is not None and recipe.class_name not in classes:
        raise RecipeError(
            f"'class_name' must be one of {', '.join(classes)} or null, not '{recipe.class_name}'"
        )
    return recipe


def load_skin_vae(recipe: TokenRigRecipe) -> SkinVAE:
    """The frozen VAE: a `skin_vae` directory, or that of a policy directory. RecipeError if there is none."""
    try:
        folder = find_skin_vae(recipe.skin_vae, recipe.skin_vae)
        return SkinVAE.load(folder).eval().requires_grad_(False)
    except (PolicyError, ValueError, SafetensorError) as error:
        raise RecipeError(
            f"'skin_vae': {error}; train one with `python -m policy.pretrain_skin_vae`"
        ) from error


def initial_model(recipe: TokenRigRecipe, skin_vae: SkinVAE) -> TokenRigForCausalLM:
    """The TokenRig to train: random from `loop.seed`, or that of `start_from` in float32.

    The vocabulary has the CVAE's codebook and tokens per bone; with `start_from` its classes, parts and
    bins are those of the start, whose sizes must be the recipe's. Of a start with another codebook, the
    SkinTokens begin anew (standard error says so) and all else is kept.

    Raises RecipeError.
    """
    codebook, tokens = skin_vae.config.codebook_size, skin_vae.config.tokens_per_skin
    config = TokenRigConfig(
        vocabulary=Vocabulary(codebook=codebook, tokens_per_skin=tokens).to_dict(),
        mesh_encoder=recipe.mesh_encoder.to_dict(),
        **vars(recipe.language_model),
    )
    torch.manual_seed(recipe.loop.seed)
    if recipe.start_from is None:
        return TokenRigForCausalLM(config)
    try:
        model = load_model(recipe.start_from)
    except (PolicyError, ValueError, OSError, SafetensorError) as error:
        raise RecipeError(f"'start_from': {error}") from error
    check_same_sizes(recipe.start_from, _sizes(model.config), _sizes(config))
    words = model.config.get_vocabulary()
    if recipe.class_name is not None and recipe.class_name not in words.classes:
        known = ", ".join(words.classes) or "no class"
        raise RecipeError(
            f"'class_name': the policy in '{recipe.start_from}' knows {known}, not '{recipe.class_name}'; "
            "name one of them or null"
        )
    new_words = replace(words, codebook=codebook, tokens_per_skin=tokens)
    if words.codebook == codebook:
        model.config.vocabulary = new_words.to_dict()
        return model
    print(
        f"'{recipe.start_from}' has {words.codebook} SkinTokens and '{recipe.skin_vae}' {codebook} codes: "
        "SkinTokens begin anew",
        file=sys.stderr,
    )
    return _with_words(model, config, new_words)


def _with_words(start: TokenRigForCausalLM, config: TokenRigConfig, words: Vocabulary) -> TokenRigForCausalLM:
    """A model of `config` with the weights of `start`, except for SkinTokens: theirs stay random."""
    old = start.config.get_vocabulary()
    model = TokenRigForCausalLM(
        TokenRigConfig(**{**config.to_dict(), "vocabulary": words.to_dict(), "vocab_size": None})
    )
    weights = start.state_dict()
    for name, tensor in model.state_dict().items():
        if tensor.shape == weights[name].shape:
            continue
        rows = tensor.clone()  # of the token embedding and the head tied to it
        rows[: words.skin_first] = weights[name][: old.skin_first]
        rows[words.eos] = weights[name][old.eos]
        weights[name] = rows
    model.load_state_dict(weights)
    return model


def _sizes(config: TokenRigConfig) -> dict[str, Any]:
    """What shapes the weights or changes what they compute, as dotted recipe keys."""
    encoder = config.get_mesh_encoder().to_dict()
    del encoder["init_scale"]  # of random weights only
    names = [field.name for field in fields(LanguageModelRecipe)]
    return {
        **{f"mesh_encoder.{key}": value for key, value in encoder.items()},
        **{f"language_model.{name}": getattr(config, name) for name in names},
    }


@dataclass(frozen=True, eq=False)
class TokenizedMesh:
    """One example: cloud (N, 3), skeleton tokens, and what the skin encoder sees of each bone (J, K, …)."""

    points: Tensor
    normals: Tensor
    skeleton: list[int]
    shown_points: Tensor
    shown_normals: Tensor
    shown_weights: Tensor


class TokenizedMeshes(Dataset[TokenizedMesh]):
    """Item i of the rig stream, its skeleton as tokens."""

    def __init__(self, recipe: TokenRigRecipe, vocabulary: Vocabulary) -> None:
        self.recipe, self.vocabulary = recipe, vocabulary
        self.rigs = RigExamples(recipe.data)

    def __getitem__(self, index: int) -> TokenizedMesh:
        example = self.rigs[index]
        rng = np.random.default_rng((self.recipe.data.first_seed, index, 2))
        bones = np.arange(len(example.joints))
        rows = skin_points(example, bones, self.recipe.encoder_points, rng)
        # A data set's own class, unless this vocabulary has no word for it.
        known = example.class_name in self.vocabulary.classes
        class_name = example.class_name if known else self.recipe.class_name
        skeleton = tokenize_skeleton(example.joints, example.parents, class_name, self.vocabulary)
        return TokenizedMesh(
            torch.from_numpy(example.points[: example.uniform]),
            torch.from_numpy(example.normals[: example.uniform]),
            [int(token) for token in skeleton],
            torch.from_numpy(example.points[rows]),
            torch.from_numpy(example.normals[rows]),
            torch.from_numpy(example.weights[rows, bones[:, None]]),
        )


def collate(items: list[TokenizedMesh]) -> dict[str, Any]:
    """Stack the clouds; bones of all meshes go into one axis, `bones` counts them per mesh."""
    return {
        "points": torch.stack([item.points for item in items]),
        "normals": torch.stack([item.normals for item in items]),
        "skeletons": [item.skeleton for item in items],
        "bones": [len(item.shown_points) for item in items],
        "shown_points": torch.cat([item.shown_points for item in items]),
        "shown_normals": torch.cat([item.shown_normals for item in items]),
        "shown_weights": torch.cat([item.shown_weights for item in items]),
    }


def sequences(
    batch: dict[str, Any], skin_vae: SkinVAE | None, vocabulary: Vocabulary
) -> tuple[Tensor, Tensor]:
    """Token ids (B, L) int64 and which are real (B, L) bool, padded on the right.

    With a skin VAE whole rigs `[bos, class, …, skeleton eos, SkinTokens, eos]`, without it the skeleton part.
    """
    rows = [list(skeleton) for skeleton in batch["skeletons"]]
    device = batch["points"].device
    if skin_vae is not None:
        # In float32 also while the language model trains in bfloat16: codes are what `encode_skin` says
        # everywhere else.
        with torch.autocast(device.type, enabled=False):
            codes = skin_vae.encode_skin(
                batch["shown_points"], batch["shown_normals"], batch["shown_weights"]
            )
        rows = [
            rig_tokens(row, bone_codes.cpu().numpy(), vocabulary)
            for row, bone_codes in zip(rows, codes.split(batch["bones"]), strict=True)
        ]
    ids = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=vocabulary.pad)
    lengths = torch.tensor([len(row) for row in rows])
    real = torch.arange(ids.shape[1]) < lengths[:, None]
    return ids.to(device), real.to(device)


@torch.no_grad()
def with_own_skin_tokens(
    model: TokenRigForCausalLM, ids: Tensor, batch: dict[str, Any], share: float, seed: tuple[int, ...]
) -> Tensor:
    """(B, L) ids to read, in which some SkinTokens are the model's own draws given the true ones before.

    Of each row a share that is uniform in [0, share]. Learning to write the true rig behind them is scheduled
    sampling (Bengio et al. 2015): a policy that has only read true SkinTokens loses its place after the first
    bone that it writes a little wrong.
    """
    vocabulary = model.config.get_vocabulary()
    logits = model(
        input_ids=ids,
        points=batch["points"],
        normals=batch["normals"],
        rng=np.random.default_rng((*seed, 1)),
    ).logits[:, :-1, vocabulary.skin_first : vocabulary.eos]
    rng = np.random.default_rng((*seed, 2))
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    noise = torch.empty(logits.shape).exponential_(generator=generator).to(logits.device)
    drawn = vocabulary.skin_first + (logits.float().softmax(-1) / noise).argmax(-1)
    chance = share * torch.rand(len(ids), 1, generator=generator)
    chosen = (torch.rand(drawn.shape, generator=generator) < chance).to(ids.device)
    true = ids[:, 1:]
    chosen &= (true >= vocabulary.skin_first) & (true < vocabulary.eos)
    return torch.cat([ids[:, :1], torch.where(chosen, drawn, true)], dim=1)


def rig_losses(log_probs: Tensor, ids: Tensor, real: Tensor, vocabulary: Vocabulary) -> Losses:
    """Mean negative log-likelihood per token under the strict grammar: `loss`, and its two phases apart.

    log_probs (B, C) of the completion ids (B, C); `real` (B, C) masks padding.
    """
    nll = -log_probs
    skin = (ids >= vocabulary.skin_first) & (ids < vocabulary.eos) & real
    skeleton = (ids < vocabulary.skin_first) & real
    result = {
        "loss": nll[real].mean(),
        "skeleton": nll[skeleton].mean(),
    }
    if skin.any():
        result["skin"] = nll[skin].mean()
    return result


def train(recipe: TokenRigRecipe) -> Path:
    """Run stage 2 and write the policy (model, tokenizer and CVAE, in bfloat16) to `<output_dir>/policy`."""
    skin_vae = load_skin_vae(recipe)
    initial = initial_model(recipe, skin_vae)
    vocabulary = initial.config.get_vocabulary()
    examples = TokenizedMeshes(recipe, vocabulary)
    target = start_run(recipe, recipe.loop) / "policy"
    try:
        check_replaceable(target)  # now rather than when the training is done
    except PolicyError as error:
        raise RecipeError(f"'loop.output_dir': {error}") from error

    def losses(model: nn.Module, batch: dict[str, Any], step: int) -> Losses:
        vae = skin_vae.to(batch["points"].device) if step >= recipe.skeleton_only_steps else None
        ids, real = sequences(batch, vae, vocabulary)
        seed = (recipe.loop.seed, step)
        read = ids
        if vae is not None and recipe.own_token_share:
            read = with_own_skin_tokens(initial, ids, batch, recipe.own_token_share, seed)
        output = model(
            input_ids=read,
            points=batch["points"],
            normals=batch["normals"],
            completion_ids=ids[:, 2:],
            entropy=False,
            rng=np.random.default_rng((*seed, 1)),
        )
        return rig_losses(output.log_probs, ids[:, 2:], real[:, 2:], vocabulary)

    with barrier_on_exit():
        model = run_training(initial, examples, collate, losses, recipe.loop, "TokenRig")
        assert isinstance(model, TokenRigForCausalLM)
        if is_main_process():
            RigPolicy(model, skin_vae.cpu()).save(target, dtype=torch.bfloat16)
    return target


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: `python -m policy.pretrain_tokenrig recipes/tokenrig_small.yaml`."""
    return run_command(__doc__ or "", load_recipe, train, argv, "python -m policy.pretrain_tokenrig")


if __name__ == "__main__":
    sys.exit(main())
