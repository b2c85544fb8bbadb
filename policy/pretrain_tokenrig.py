"""Stage 2: trains TokenRig on ground-truth rigs to write the rig of a mesh, with the skin VAE frozen."""

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
from data.typed_recipe import PathText, RecipeError, build, read_recipe, require_positive
from policy.bundle import RigPolicy, load_model
from policy.policy_folder import NoSkinVAEError, PolicyError, check_replaceable, find_skin_vae
from policy.pretraining.held_out import held_out_batches
from policy.pretraining.loop import Losses, run_training
from policy.pretraining.loop_recipe import LoopRecipe
from policy.pretraining.point_cloud import RigExample, skin_points
from policy.pretraining.processes import barrier_on_exit, examples_per_step, is_main_process
from policy.pretraining.rig_examples import RigDataRecipe, RigExamples
from policy.pretraining.rig_losses import rig_losses
from policy.pretraining.start import check_same_sizes, started_run
from policy.pretraining.validation import Validation, ValidationRecipe
from policy.skintokens.skin_vae import SkinVAE
from policy.tokenrig.configuration import TokenRigConfig
from policy.tokenrig.log_probs import head_logits
from policy.tokenrig.mesh_encoder import MeshEncoderConfig
from policy.tokenrig.modeling import TokenRigForCausalLM
from policy.tokenrig.packed_attention import unsupported
from policy.tokens.grammar import PROMPT_LENGTH
from policy.tokens.skeleton_tokenizer import rig_tokens, tokenize_skeleton
from policy.tokens.vocabulary import Vocabulary


@dataclass(frozen=True)
class LanguageModelRecipe:
    """Sizes of the language model, which has the Qwen3 architecture."""

    hidden_size: int = 896
    """Width of the residual stream; at least 1. Source: specification, section 6."""

    num_hidden_layers: int = 28
    """Transformer layers; at least 1. Source: specification, section 6."""

    num_attention_heads: int = 16
    """Query heads; a multiple of `num_key_value_heads`. Source: specification, section
    6."""

    num_key_value_heads: int = 8
    """Key and value heads; at least 1. Source: specification, section 6."""

    head_dim: int = 128
    """Width of a head, independent of `hidden_size`; even. Source: specification, section
    6."""

    intermediate_size: int = 3072
    """Width of the gated MLP; at least 1. Source: specification, section 6."""

    max_position_embeddings: int = 3192
    """Maximum sequence length in positions, mesh tokens included; at least 1. Source: specification, section
    6."""

    def __post_init__(self) -> None:
        require_positive("language_model", self, *(field.name for field in fields(self)))
        if self.num_attention_heads % self.num_key_value_heads:
            raise RecipeError(
                f"'language_model.num_attention_heads' {self.num_attention_heads} must be a multiple of "
                f"'language_model.num_key_value_heads' {self.num_key_value_heads}"
            )
        if self.head_dim % 2:
            raise RecipeError(f"'language_model.head_dim' must be even, not {self.head_dim}")


@dataclass(frozen=True)
class TokenRigRecipe:
    """Training TokenRig to write the rig of a mesh, with the skin VAE frozen."""

    start_from: PathText | None = None
    """Policy directory whose TokenRig to start from, of the same sizes; null for random weights. Its skin VAE
    is not used. Source: this project."""

    skin_vae: PathText = "checkpoints/small/skin_vae"
    """Skin VAE, or policy directory with one, that defines the SkinTokens. Source: this project."""

    class_name: str | None = "articulation"
    """Class token of rigs that have no class of their own in the vocabulary; one of its classes, or null for
    none. Source: specification, section 9.2."""

    mesh_encoder: MeshEncoderConfig = field(default_factory=MeshEncoderConfig)
    """Sizes of the mesh encoder."""

    language_model: LanguageModelRecipe = field(default_factory=LanguageModelRecipe)
    """Sizes of the language model."""

    data: RigDataRecipe = field(default_factory=RigDataRecipe)
    """Training rigs."""

    encoder_points: int = 512
    """Points per bone that the skin VAE's encoder sees, half of them near the bone; at least 1. Source: this
    project."""

    skeleton_only_steps: int = 0
    """Steps that train on skeletons without SkinTokens, which is faster; at least 0. Source: this project."""

    own_token_share: float = 0.0
    """Largest share of a row's SkinTokens that are replaced in the input by the model's own draws; 0 to 1.
    Source: scheduled sampling (Bengio et al. 2015)."""

    own_token_start: int = 0
    """First step with own tokens, for a run that learns from the ground truth's alone before; at least 0.
    Source: this project."""

    loop: LoopRecipe = field(default_factory=LoopRecipe)
    """Training loop."""

    validation: ValidationRecipe = field(default_factory=ValidationRecipe)
    """Measures on held-out rigs."""


def load_recipe(path: str, overrides: Sequence[str]) -> TokenRigRecipe:
    """Read and check a stage-2 recipe; raises RecipeError."""
    recipe = build(TokenRigRecipe, read_recipe(path, overrides))
    for name, least in (("encoder_points", 1), ("skeleton_only_steps", 0), ("own_token_start", 0)):
        if getattr(recipe, name) < least:
            raise RecipeError(f"'{name}' must be at least {least}, not {getattr(recipe, name)}")
    if not 0 <= recipe.own_token_share <= 1:
        raise RecipeError(f"'own_token_share' must be between 0 and 1, not {recipe.own_token_share}")
    classes = Vocabulary().classes
    if recipe.start_from is None and recipe.class_name is not None and recipe.class_name not in classes:
        raise RecipeError(
            f"'class_name' must be one of {', '.join(classes)} or null, not '{recipe.class_name}'"
        )
    return recipe


def load_skin_vae(recipe: TokenRigRecipe) -> SkinVAE:
    """The frozen skin VAE, from its own or a policy's directory. Raises RecipeError if there is none."""
    try:
        folder = find_skin_vae(recipe.skin_vae, recipe.skin_vae)
        return SkinVAE.load(folder).eval().requires_grad_(False)
    except (ValueError, SafetensorError) as error:
        if isinstance(error, PolicyError) and not isinstance(error, NoSkinVAEError):
            raise RecipeError(f"'skin_vae': {error}") from error
        raise RecipeError(
            f"'skin_vae': {error}; train one with `python -m policy.pretrain_skin_vae`"
        ) from error


def initial_model(recipe: TokenRigRecipe, skin_vae: SkinVAE) -> TokenRigForCausalLM:
    """The TokenRig to train: random from `loop.seed`, or the one in `start_from`, in float32.

    The vocabulary takes codebook and tokens per bone from the skin VAE, and classes, parts and bins from
    `start_from`, whose sizes must equal the recipe's. All weights are kept, except those of the SkinTokens if
    the codebook has another size: they are initialised again. Another codebook, of whatever size, is reported
    on standard error.

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
            f"'class_name': the policy in '{recipe.start_from}' has {known}, not '{recipe.class_name}'; "
            "choose one of them or null"
        )
    new_words = replace(words, codebook=codebook, tokens_per_skin=tokens)
    if words.codebook == codebook:
        if model.config.skin_codes not in (None, skin_vae.code_digest()):
            print(
                f"'{recipe.start_from}' writes SkinTokens of another skin VAE than '{recipe.skin_vae}': it "
                "has to learn their new meanings",
                file=sys.stderr,
            )
        model.config.skin_codes = None
        model.config.vocabulary = new_words.to_dict()
        return model
    print(
        f"'{recipe.start_from}' has {words.codebook} SkinTokens and '{recipe.skin_vae}' {codebook} codes: "
        "re-initialising the SkinTokens' weights",
        file=sys.stderr,
    )
    return _with_words(model, config, new_words)


def _with_words(start: TokenRigForCausalLM, config: TokenRigConfig, words: Vocabulary) -> TokenRigForCausalLM:
    """A model of `config` with the weights of `start`, except those of the SkinTokens, which stay random."""
    old = start.config.get_vocabulary()
    model = TokenRigForCausalLM(
        TokenRigConfig(**{**config.to_dict(), "vocabulary": words.to_dict(), "vocab_size": None})
    )
    weights = start.state_dict()
    for name, tensor in model.state_dict().items():
        if tensor.shape == weights[name].shape:
            continue
        rows = tensor.clone()  # token embedding and the head tied to it
        rows[: words.skin_first] = weights[name][: old.skin_first]
        rows[words.eos] = weights[name][old.eos]
        weights[name] = rows
    model.load_state_dict(weights)
    return model


def _sizes(config: TokenRigConfig) -> dict[str, Any]:
    """Everything that changes the weights' shapes or what they compute, by dotted recipe key."""
    encoder = config.get_mesh_encoder().to_dict()
    del encoder["init_scale"]  # affects random weights only
    names = [field.name for field in fields(LanguageModelRecipe)]
    return {
        **{f"mesh_encoder.{key}": value for key, value in encoder.items()},
        **{f"language_model.{name}": getattr(config, name) for name in names},
    }


@dataclass(frozen=True, eq=False)
class TokenizedMesh:
    """One example: point cloud (N, 3), skeleton tokens, and encoder points of each bone (J, K, …)."""

    points: Tensor
    normals: Tensor
    skeleton: list[int]
    encoder_points: Tensor
    encoder_normals: Tensor
    encoder_weights: Tensor


class TokenizedMeshes(Dataset[TokenizedMesh]):
    """Example i of the rigs, with its skeleton as tokens.

    The first `skeletons` examples, those of `skeleton_only_steps`, have neither weights nor bones' points.
    """

    def __init__(self, recipe: TokenRigRecipe, vocabulary: Vocabulary, skeletons: int = 0) -> None:
        self.recipe, self.vocabulary, self.skeletons = recipe, vocabulary, skeletons
        self.rigs = RigExamples(recipe.data)

    def __getitem__(self, index: int) -> TokenizedMesh:
        whole = index >= self.skeletons
        rng = np.random.default_rng((self.recipe.data.first_seed, index, 2))
        return self.item(self.rigs.example(index, skeleton=not whole), rng, whole)

    def item(self, example: RigExample, rng: np.random.Generator, whole: bool = True) -> TokenizedMesh:
        """The tokenised example, and the points of its bones; of no bone unless it is `whole`."""
        bones = np.arange(len(example.joints) if whole else 0)
        rows = skin_points(example, bones, self.recipe.encoder_points, rng)
        # The rig's own class, if the vocabulary has it.
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
    """Stack the point clouds and join the bones of all meshes in one axis; `bones` counts them per mesh."""
    return {
        "points": torch.stack([item.points for item in items]),
        "normals": torch.stack([item.normals for item in items]),
        "skeletons": [item.skeleton for item in items],
        "bones": [len(item.encoder_points) for item in items],
        "encoder_points": torch.cat([item.encoder_points for item in items]),
        "encoder_normals": torch.cat([item.encoder_normals for item in items]),
        "encoder_weights": torch.cat([item.encoder_weights for item in items]),
    }


def sequences(
    batch: dict[str, Any], skin_vae: SkinVAE | None, vocabulary: Vocabulary
) -> tuple[Tensor, Tensor]:
    """Token ids (B, L) int64, padded on the right, and a mask (B, L) bool that is False on padding.

    With a skin VAE, whole rigs `[bos, class, …, skeleton eos, SkinTokens, eos]`; without one, only skeletons.
    """
    rows = [list(skeleton) for skeleton in batch["skeletons"]]
    device = batch["points"].device
    if skin_vae is not None:
        # In float32 even when the language model trains in bfloat16, so that codes are the same everywhere.
        with torch.autocast(device.type, enabled=False):
            codes = skin_vae.encode_skin(
                batch["encoder_points"], batch["encoder_normals"], batch["encoder_weights"]
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
    """Input ids (B, L) with some SkinTokens replaced by the model's own draws given the ground-truth prefix.

    The share replaced in each row is uniform in [0, share]. Predicting the ground-truth tokens from this
    input is scheduled sampling (Bengio et al. 2015): a policy that has only read ground-truth SkinTokens
    derails after the first bone that it gets slightly wrong.
    """
    vocabulary = model.config.get_vocabulary()
    rng = np.random.default_rng((*seed, 2))
    generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
    true = ids[:, PROMPT_LENGTH:]
    chance = share * torch.rand(len(ids), 1, generator=generator)
    chosen = (torch.rand(true.shape, generator=generator) < chance).to(ids.device)
    chosen &= (true >= vocabulary.skin_first) & (true < vocabulary.eos)
    hidden = model.completion_hidden_states(
        ids,
        batch["points"],
        batch["normals"],
        **packing(model, ids != vocabulary.pad),
        rng=np.random.default_rng((*seed, 1)),
    )
    words = model.get_output_embeddings().weight[vocabulary.skin_first : vocabulary.eos]
    logits = head_logits(hidden[chosen], words)
    noise = torch.empty(logits.shape).exponential_(generator=generator).to(logits.device)
    read = ids.clone()
    read[:, PROMPT_LENGTH:][chosen] = vocabulary.skin_first + (logits.softmax(-1) / noise).argmax(-1)
    return read


def packing(model: nn.Module, real: Tensor) -> dict[str, Any]:
    """Arguments of a forward pass that runs rows without their padding, where the device has the kernels.

    real (B, L): False on padding behind `[bos, class]` and the completion. Both passes give the same losses
    up to rounding.
    """
    assert isinstance(model, TokenRigForCausalLM)
    device, dtype = real.device, model.dtype
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    if unsupported(device, dtype, model.config.head_dim) is not None:
        return {}
    return {"packed": True, "completion_lengths": real[:, PROMPT_LENGTH:].sum(dim=1)}


def predicted(
    model: nn.Module,
    batch: dict[str, Any],
    ids: Tensor,
    real: Tensor,
    read: Tensor,
    vocabulary: Vocabulary,
    **options: Any,
) -> Losses:
    """Losses, in nats per token, of predicting each of ids (B, L) from the mesh and the ids before it.

    read (B, L): the ids that the model reads, equal to `ids` unless it reads its own SkinTokens. real (B, L):
    False on padding. `options`: further arguments of the forward pass.
    """
    completion = ids[:, PROMPT_LENGTH:]
    clouds = {"points": batch["points"], "normals": batch["normals"]}
    output = model(input_ids=read, **clouds, completion_ids=completion, entropy=False, **options)
    return rig_losses(output.log_probs, completion, real[:, PROMPT_LENGTH:], vocabulary)


def validation_of(recipe: TokenRigRecipe, examples: TokenizedMeshes, skin_vae: SkinVAE) -> Validation | None:
    """Held-out rigs, teacher-forced, skeletons alone while training has no more; None without validation."""
    if not recipe.validation.every:
        return None
    vocabulary = examples.vocabulary

    def losses(model: nn.Module, batch: dict[str, Any], step: int) -> Losses:
        whole = step >= recipe.skeleton_only_steps
        kind = "ids of whole rigs" if whole else "ids of skeletons"
        if kind not in batch:  # the skin VAE is frozen: encoded once
            vae = skin_vae.to(batch["points"].device) if whole else None
            batch[kind] = sequences(batch, vae, vocabulary)
        ids, real = batch[kind]
        return predicted(model, batch, ids, real, ids, vocabulary, **packing(model, real))

    whole_steps = recipe.skeleton_only_steps < recipe.loop.max_steps
    measure = recipe.validation.chosen_measure(("loss", "skeleton") + ("skin",) * whole_steps)
    batches = held_out_batches(recipe.validation, recipe.data, examples.item, collate, recipe.loop.batch_size)
    return Validation(recipe.validation, batches, losses, measure, recipe.skeleton_only_steps)


def train(recipe: TokenRigRecipe) -> Path:
    """Run stage 2 and write the policy, skin VAE included, in bfloat16 to `<loop.output_dir>/policy`."""
    skin_vae = load_skin_vae(recipe)
    initial = initial_model(recipe, skin_vae)
    vocabulary = initial.config.get_vocabulary()
    skeletons = recipe.skeleton_only_steps * examples_per_step(recipe.loop)
    examples = TokenizedMeshes(recipe, vocabulary, skeletons)
    target = Path(recipe.loop.output_dir) / "policy"
    try:
        check_replaceable(target)  # before training rather than after it
    except PolicyError as error:
        raise RecipeError(f"'loop.output_dir': {error}") from error

    def losses(model: nn.Module, batch: dict[str, Any], step: int) -> Losses:
        vae = skin_vae.to(batch["points"].device) if step >= recipe.skeleton_only_steps else None
        ids, real = sequences(batch, vae, vocabulary)
        seed = (recipe.loop.seed, step)
        read = ids
        if vae is not None and recipe.own_token_share and step >= recipe.own_token_start:
            read = with_own_skin_tokens(initial, ids, batch, recipe.own_token_share, seed)
        how = {**packing(initial, real), "rng": np.random.default_rng((*seed, 1))}
        return predicted(model, batch, ids, real, read, vocabulary, **how)

    checks = validation_of(recipe, examples, skin_vae)
    with started_run(recipe, recipe.loop), barrier_on_exit():
        model = run_training(initial, examples, collate, losses, recipe.loop, "TokenRig", checks)
        assert isinstance(model, TokenRigForCausalLM)
        if is_main_process():
            RigPolicy(model, skin_vae.cpu()).save(target, dtype=torch.bfloat16)
    return target


def main(argv: Sequence[str] | None = None) -> int:
    """Command line: `python -m policy.pretrain_tokenrig recipes/tokenrig_small.yaml`."""
    return run_command(__doc__ or "", load_recipe, train, argv, "python -m policy.pretrain_tokenrig")


if __name__ == "__main__":
    sys.exit(main())
