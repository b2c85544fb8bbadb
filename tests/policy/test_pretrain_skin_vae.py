"""Stage 1: its losses by hand, its examples, and whole runs through its command line."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data import make_creature, write_skinned_glb
from data.typed_recipe import RecipeError
from policy import pretrain_skin_vae
from policy.pretrain_skin_vae import (
    MEASURES,
    BoneExamples,
    SkinLossRecipe,
    SkinVAERecipe,
    collate,
    initial_model,
    load_recipe,
    main,
    mask_accuracy,
    nested_tokens,
    reconstruction_losses,
    skin_iou,
    skin_l1,
    start_quantizing,
    validation_of,
)
from policy.skintokens.skin_vae import SkinVAE, SkinVAEConfig
from tests.policy.tiny_recipes import SKIN_VAE, UNUSABLE, metrics, unusable_source, write

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = str(ROOT / "recipes" / "skin_vae_small.yaml")


@pytest.fixture
def recipe(tmp_path) -> SkinVAERecipe:
    return load_recipe(write(tmp_path, SKIN_VAE), [])


# ---------------------------------------------------------------- losses


def test_reconstruction_losses_by_hand():
    # Logits 0 and ln 3 are the weights 1/2 and 3/4, the truth is 0 and 1.
    losses = reconstruction_losses(
        torch.tensor([[0.0, math.log(3)]]),
        torch.tensor([[0.0, 1.0]]),
        torch.tensor([[1.0, 0.25]]),
        SkinLossRecipe(1.0, 10.0, 100.0),
    )
    bce = (math.log(2) - math.log(0.75)) / 2  # -ln(1 - 1/2) and -ln(3/4)
    mse = (0.25 + 0.0625) / 2
    # 1 - (2 * 0.75 + 1e-4) / (0.25 + 0.5625 + 1 + 1e-4)
    dice = 1 - 1.5001 / 1.8126
    # Logits move by ln 99, minus the threshold's: the odds of "inside" become 99 and 297, so that outside
    # has probability 1/100 where it is true and inside 297/298.
    mask = (math.log(100) + math.log(298 / 297)) / 2
    # The second point stands for a quarter of the first. On both sides: 297/298 of it; on either: 99/100
    # of the first and all of the second.
    jaccard = 1 - (0.25 * 297 / 298 + 1e-4) / (0.99 + 0.25 + 1e-4)
    loss = bce + 10 * mse + 100 * dice
    expected = {"bce": bce, "mse": mse, "dice": dice, "mask": mask, "jaccard": jaccard, "loss": loss}
    assert {name: value.item() for name, value in losses.items()} == pytest.approx(expected, rel=1e-6)


def test_dice_is_a_mean_over_bones_and_forgives_an_empty_one():
    # Bone 1 by hand as above; bone 2 has no weight and is said to have none: 1 - 1e-4 / 1e-4 = 0.
    logits = torch.tensor([[0.0, math.log(3)], [-80.0, -80.0]])
    weights = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    losses = reconstruction_losses(logits, weights, torch.ones(2, 2), SkinLossRecipe())
    assert losses["dice"].item() == pytest.approx((1 - 1.5001 / 1.8126) / 2, rel=1e-6)
    jaccard = 1 - (297 / 298 + 1e-4) / (1.99 + 1e-4)
    assert losses["jaccard"].item() == pytest.approx(jaccard / 2, rel=1e-6)


def test_losses_of_half_precision_logits_are_computed_in_float32():
    logits = torch.linspace(-8, 8, 64).reshape(2, 32)
    weights = torch.rand(2, 32, generator=torch.Generator().manual_seed(0))
    rounded = reconstruction_losses(logits.bfloat16(), weights, weights, SkinLossRecipe())
    exact = reconstruction_losses(logits.bfloat16().float(), weights, weights, SkinLossRecipe())
    assert rounded["loss"].dtype == torch.float32
    assert torch.equal(rounded["loss"], exact["loss"])


def test_iou_by_hand():
    predicted = torch.tensor([[0.02, 0.5, 0.0, 0.2], [0.0, 0.005, 0.0, 0.0], [0.9, 0.9, 0.0, 0.0]])
    weights = torch.tensor([[0.5, 0.0, 0.0, 0.3], [0.0, 0.0, 0.009, 0.0], [0.0, 0.0, 0.9, 0.0]])
    # Two of three points; nothing above 0.01 on either side: 1; none of three: 0.
    even = torch.ones(3, 4)
    assert skin_iou(predicted, weights, even).item() == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert skin_iou(predicted, weights, even, threshold=0.4).item() == pytest.approx((0 + 1 + 0) / 3)
    even[0, 1] = 0.5  # half of a point
    assert skin_iou(predicted, weights, even).item() == pytest.approx((2 / 2.5 + 1 + 0) / 3)


def test_l1_and_mask_accuracy_by_hand():
    predicted = torch.tensor([[0.02, 0.5, 0.0, 0.2], [0.0, 0.005, 0.0, 0.0]])
    weights = torch.tensor([[0.5, 0.0, 0.0, 0.3], [0.0, 0.0, 0.009, 0.0]])
    # Three points of the first bone have an influence on either side, none of the second.
    assert skin_l1(predicted, weights).item() == pytest.approx(((0.48 + 0.5 + 0.1) / 3 + 0) / 2)
    assert skin_l1(predicted, weights, 0.4).item() == pytest.approx(((0.48 + 0.5) / 2 + 0) / 2)
    assert mask_accuracy(predicted, weights).item() == pytest.approx(7 / 8)  # the 0.5 that should be 0
    assert mask_accuracy(predicted, weights, 0.4).item() == pytest.approx(6 / 8)


def test_the_mask_term_weighs_in_and_has_a_threshold():
    logits, weights = torch.tensor([[0.0, 1.0, -4.0]]), torch.tensor([[0.0, 0.3, 0.2]])
    shares = torch.ones(1, 3)
    without = reconstruction_losses(logits, weights, shares, SkinLossRecipe())
    with_mask = reconstruction_losses(logits, weights, shares, SkinLossRecipe(mask=0.5, mask_threshold=0.25))
    # At 1/4 logits move by ln 3; only the second weight is inside.
    odds = [3.0, 3 * math.e, 3 * math.exp(-4)]
    expected = (math.log(1 + odds[0]) + math.log(1 + 1 / odds[1]) + math.log(1 + odds[2])) / 3
    assert with_mask["mask"].item() == pytest.approx(expected, rel=1e-5)
    assert with_mask["loss"].item() == pytest.approx(without["loss"].item() + 0.5 * expected, rel=1e-5)
    with pytest.raises(RecipeError, match=r"'loss\.mask_threshold' must be above 0 and below 1"):
        SkinLossRecipe(mask_threshold=0.0)


def test_the_jaccard_term_weighs_in_and_prefers_what_iou_prefers():
    recipe, shares = SkinLossRecipe(jaccard=2.0), torch.tensor([[1.0, 1.0, 0.1]])
    weights = torch.tensor([[0.9, 0.0, 0.0]])
    good = torch.tensor([[2.0, -9.0, -9.0]])
    losses = [
        reconstruction_losses(logits, weights, shares, recipe)
        for logits in (good, good + torch.tensor([0.0, 0.0, 8.0]), good + torch.tensor([0.0, 8.0, 0.0]))
    ]
    # An error on a point that stands for little of the mesh costs less.
    assert losses[0]["jaccard"] < losses[1]["jaccard"] < losses[2]["jaccard"]
    without = reconstruction_losses(good, weights, shares, SkinLossRecipe())
    assert losses[0]["loss"].item() == pytest.approx(
        without["loss"].item() + 2 * losses[0]["jaccard"].item(), rel=1e-5
    )


# ---------------------------------------------------------------- nested dropout


def lengths(recipe: SkinVAERecipe, steps: int = 400) -> Counter:
    return Counter(nested_tokens(step, recipe) for step in range(steps))


@pytest.mark.parametrize(
    ("tokens", "sampled", "expected"),
    [
        (4, 8, {1, 2, 4, 8}),
        (2, 4, {1, 2, 4}),
        (1, 1, {1}),
        (4, 32, {1, 2, 4, 8, 16, 32}),
        (6, 12, {1, 2, 4, 6, 8, 12}),
    ],
)
def test_nested_lengths(recipe, tokens, sampled, expected):
    model = replace(recipe.model, tokens_per_skin=tokens, compress_tokens=sampled, sample_tokens=sampled)
    counts = lengths(replace(recipe, model=model))
    assert set(counts) == expected
    assert min(counts.values()) > 0.5 * 400 / len(expected)  # each as likely
    assert lengths(replace(recipe, model=model, nested_dropout=False)) == {tokens: 400}


def test_nested_lengths_depend_on_step_and_seed_alone(recipe):
    first = [nested_tokens(step, recipe) for step in range(50)]
    assert first == [nested_tokens(step, recipe) for step in range(50)]
    other = replace(recipe, loop=replace(recipe.loop, seed=1))
    assert first != [nested_tokens(step, other) for step in range(50)]


def test_models_with_perceivers_have_one_length(recipe):
    model = SkinVAEConfig(tokens_per_skin=8, compress_tokens=8, sample_tokens=16)
    assert lengths(replace(recipe, model=model)) == {8: 400}


# ---------------------------------------------------------------- examples


def test_bone_examples(recipe):
    examples = BoneExamples(recipe)
    item = examples[0]
    assert {name: tuple(value.shape) for name, value in item.items()} == {
        "cond_points": (48, 3),
        "cond_normals": (48, 3),
        "encoder_points": (3, 20, 3),
        "encoder_normals": (3, 20, 3),
        "encoder_weights": (3, 20),
        "query_points": (3, 24, 3),
        "query_normals": (3, 24, 3),
        "query_weights": (3, 24),
        "query_shares": (3, 24),
    }
    again = BoneExamples(recipe)[0]
    assert all(torch.equal(item[name], again[name]) for name in item)
    assert not torch.equal(item["query_points"], examples[1]["query_points"])


def test_weights_belong_to_their_points(recipe):
    rig = BoneExamples(recipe).rigs[5]
    item = BoneExamples(recipe)[5]
    row_of = {point.tobytes(): row for row, point in enumerate(rig.points)}
    for name in ("encoder", "query"):
        bones = []
        for points, weights in zip(item[f"{name}_points"], item[f"{name}_weights"], strict=True):
            rows = [row_of[point.numpy().tobytes()] for point in points]
            fitting = np.flatnonzero((rig.weights[rows] == weights.numpy()[:, None]).all(axis=0))
            assert len(fitting) >= 1
            bones.append(fitting[0])
        assert name == "query" or len(set(bones)) == 3  # three different bones


def test_a_rig_with_fewer_bones_repeats_them(recipe):
    many = BoneExamples(replace(recipe, bones_per_mesh=60))[0]
    assert many["encoder_weights"].shape == (60, 20)


def test_collate_tells_bones_whose_mesh_is_theirs(recipe):
    examples = BoneExamples(recipe)
    batch = collate([examples[0], examples[1]])
    assert batch["mesh_index"].tolist() == [0, 0, 0, 1, 1, 1]
    assert batch["cond_points"].shape == (2, 48, 3)
    assert torch.equal(batch["query_weights"][3:], examples[1]["query_weights"])
    assert torch.equal(batch["encoder_points"][:3], examples[0]["encoder_points"])


# ---------------------------------------------------------------- the command


def test_a_run_writes_a_vae_that_loads(tmp_path, capsys):
    path = write(tmp_path, SKIN_VAE)
    assert main([path, "loop.dataloader_workers=1"]) == 0
    vae = SkinVAE.load(tmp_path / "run" / "skin_vae")
    assert vae.config == load_recipe(path, []).model
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [2, 4, 6]
    agreement = {"iou", "l1", "mask_accuracy"}
    assert all(
        set(line) == {"step", "loss", "bce", "mse", "dice", "mask", "jaccard", *agreement} for line in lines
    )
    assert all(0 <= line[name] <= 1 for line in lines for name in agreement)
    assert sorted(item.name for item in (tmp_path / "run").iterdir()) == [
        "metrics.jsonl",
        "recipe.yaml",
        "skin_vae",
        "state-6",
    ]
    assert load_recipe(str(tmp_path / "run" / "recipe.yaml"), []) == load_recipe(
        path, ["loop.dataloader_workers=1"]
    )
    assert "skin VAE: 100%" in capsys.readouterr().err


@pytest.mark.parametrize("continuous_steps", [0, 2, 3, 5])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, monkeypatch, capsys, continuous_steps):
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    tiny = {**SKIN_VAE, "continuous_steps": continuous_steps}
    if continuous_steps == 3:
        tiny["validation"] = {"every": 2, "creatures": 2, "keep": "best"}
    assert main([write(tmp_path / "whole", tiny)]) == 0
    path = write(tmp_path / "broken", tiny)
    with monkeypatch.context() as patch:
        left = iter(range(4))  # the fifth step is not finished

        def until_stopped(*arguments):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return reconstruction_losses(*arguments)

        patch.setattr(pretrain_skin_vae, "reconstruction_losses", until_stopped)
        assert main([path]) == 130
    assert "interrupted; " in capsys.readouterr().err
    assert (tmp_path / "broken" / "run" / "state-3").is_dir()
    assert not (tmp_path / "broken" / "run" / "skin_vae").exists()
    assert main([path]) == 0
    files = [tmp_path / name / "run" / "skin_vae" / "model.safetensors" for name in ("whole", "broken")]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert metrics(tmp_path / "broken" / "run") == metrics(tmp_path / "whole" / "run")


def test_codes_are_fitted_once_when_quantising_begins(tmp_path, monkeypatch):
    calls = []

    def counted(vae, examples, recipe):
        calls.append(len(metrics(tmp_path / "run")))
        start_quantizing(vae, examples, recipe)

    monkeypatch.setattr(pretrain_skin_vae, "start_quantizing", counted)
    path = write(tmp_path, {**SKIN_VAE, "continuous_steps": 4})
    assert main([path, "loop.gradient_accumulation_steps=2"]) == 0
    assert calls == [2]  # two lines of two steps each


def test_codes_cannot_be_fitted_without_projections_or_under_deepspeed(tmp_path, monkeypatch):
    path = write(tmp_path, {**SKIN_VAE, "continuous_steps": 2})
    with pytest.raises(RecipeError, match=r"'model\.fsq_dim' must differ from the number"):
        load_recipe(path, [f"model.fsq_levels=[{','.join('2' * 16)}]"])
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(RecipeError, match="launch without DeepSpeed"):
        load_recipe(path, [])


def test_a_frozen_encoder_keeps_the_codes(tmp_path, recipe):
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    assert main([write(tmp_path / "first", SKIN_VAE)]) == 0
    start = tmp_path / "first" / "run" / "skin_vae"
    path = write(tmp_path / "second", {**SKIN_VAE, "frozen_encoder": True, "start_from": str(start)})
    assert main([path]) == 0
    before, after = SkinVAE.load(start), SkinVAE.load(tmp_path / "second" / "run" / "skin_vae")
    batch = collate([BoneExamples(recipe)[index] for index in range(3)])
    bones = [batch[f"encoder_{name}"] for name in ("points", "normals", "weights")]
    assert torch.equal(before.encode_skin(*bones), after.encode_skin(*bones))
    changed = {
        name.split(".")[1]
        for name, value in after.state_dict().items()
        if not torch.equal(value, before.state_dict()[name])
    }
    assert changed == {"decoder", "cond_encoder", "cond_quant", "post_quant", "FSQ"}


def test_a_start_may_get_finer_codes_but_a_frozen_encoder_keeps_its_own(tmp_path, recipe, capsys):
    SkinVAE(recipe.model).save(tmp_path / "start")
    levels = recipe.model.fsq_levels
    finer = [f"start_from={tmp_path / 'start'}", f"model.fsq_levels={[level + 1 for level in levels]}"]
    path = write(tmp_path, SKIN_VAE)
    model = initial_model(load_recipe(path, finer))
    assert model.config.codebook_size > recipe.model.codebook_size
    start = SkinVAE(recipe.model).state_dict().keys()
    assert model.state_dict().keys() == start
    assert main([path, *finer, "frozen_encoder=true"]) == 2
    assert "do not match the recipe's 'model.fsq_levels'" in capsys.readouterr().err
    assert main([path, finer[0], f"model.fsq_levels={[*levels, 2]}"]) == 2
    assert "do not match the recipe's 'model.fsq_levels'" in capsys.readouterr().err


def test_every_weight_learns(tmp_path):
    path = write(tmp_path, SKIN_VAE)
    assert main([path, "loop.weight_decay=0"]) == 0
    torch.manual_seed(0)
    start = SkinVAE(load_recipe(path, []).model).state_dict()
    end = SkinVAE.load(tmp_path / "run" / "skin_vae").state_dict()
    assert start.keys() == end.keys()
    assert [name for name in start if torch.equal(start[name], end[name])] == []


def test_rigs_of_files(tmp_path):
    creature = make_creature(0)
    write_skinned_glb(tmp_path / "rig.glb", creature.mesh, creature.rig)
    assert (
        main(
            [write(tmp_path, SKIN_VAE), f"data.sources=[{{files: {tmp_path}/**/*.glb}}]", "loop.max_steps=2"]
        )
        == 0
    )
    assert (tmp_path / "run" / "skin_vae" / "model.safetensors").is_file()


def test_a_loss_that_is_no_number_ends_with_1_and_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        pretrain_skin_vae,
        "reconstruction_losses",
        lambda logits, *others: {"loss": logits.sum() * math.nan},
    )
    assert main([write(tmp_path, SKIN_VAE)]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("failed: the loss is nan at step 1; lower 'loop.learning_rate'")
    assert not (tmp_path / "run" / "skin_vae").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.sources=[{files: NOWHERE/*.glb}]", "error: NOWHERE/*.glb: no file matches"),
        ("bones_per_mesh=0", "error: 'bones_per_mesh' must be at least 1, not 0"),
        ("encoder_points=0", "error: 'encoder_points' must be at least 1, not 0"),
        ("query_points=-1", "error: 'query_points' must be at least 1, not -1"),
        ("loss.dice=-1", "error: 'loss.dice' must not be negative, not -1.0"),
        ("loss.mask=.nan", "error: 'loss.mask' must be a finite number, not .nan"),
        ("loss.dice_epsilon=0", "error: 'loss.dice_epsilon' must be above 0, not 0.0"),
        ("loss={bce: 0, mse: 0, dice: 0, mask: 0}", "error: every weight of 'loss' is 0; set at least"),
        ("continuous_steps=-1", "error: 'continuous_steps' must be at least 0, not -1"),
        (
            "frozen_encoder=true",
            "error: 'frozen_encoder' keeps the codes of a trained skin VAE: set 'start_from'",
        ),
        ("model.width_encoder=15", "error: 'model': width 15 is not a multiple of num_attention_heads 2"),
        ("model.tokens_per_skin=9", "error: 'model': tokens_per_skin 9 exceeds the 4 learned queries"),
        ("model.fsq_levels=8", "error: 'model.fsq_levels' must be a list, not 8"),
        ("max_steps=3", "error: unknown key 'max_steps'; the nearest valid key is 'loop.max_steps'"),
    ],
)
def test_wrong_input_ends_with_2_and_writes_nothing(tmp_path, capsys, override, message):
    assert main([write(tmp_path, SKIN_VAE), override]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(message)
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", UNUSABLE)
def test_no_run_starts_without_rigs(tmp_path, capsys, kind):
    override, message = unusable_source(tmp_path, kind)
    assert main([write(tmp_path, SKIN_VAE), override]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(message)
    # One sentence, and of broken files a line each.
    assert printed.err.count("\n") == (3 if kind == "broken" else 1)
    assert not (tmp_path / "run").exists()


def test_the_shipped_recipe_is_valid(capsys):
    recipe = load_recipe(SHIPPED, [])
    assert recipe.model.codebook_size <= 4096  # the small policy writes each code as a word
    # The shipped pair is of the recipe's size, so it can be trained further (docs/pretraining.md).
    shipped = load_recipe(SHIPPED, [f"start_from={ROOT / 'checkpoints' / 'small'}", "continuous_steps=0"])
    assert initial_model(shipped).config == recipe.model
    assert main([SHIPPED, "--print-recipe"]) == 0
    assert "sample_tokens: 8" in capsys.readouterr().out
    with pytest.raises(RecipeError, match=r"unknown key 'los'; the nearest valid key is 'loss'"):
        load_recipe(SHIPPED, ["los=1"])


def test_metrics_are_json_lines(tmp_path):
    main([write(tmp_path, SKIN_VAE), "loop.max_steps=2"])
    (line,) = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["seconds_per_step"] > 0


# ---------------------------------------------------------------- starting weights


def test_start_from_loads_the_weights(tmp_path):
    start, later = tmp_path / "start", tmp_path / "later"
    start.mkdir()
    later.mkdir()
    assert main([write(start, SKIN_VAE)]) == 0
    folder = start / "run" / "skin_vae"
    path = write(later, {**SKIN_VAE, "start_from": str(folder)})
    expected = SkinVAE.load(folder).state_dict()
    first = initial_model(load_recipe(path, [])).state_dict()
    assert all(torch.equal(first[name], expected[name]) for name in expected)
    assert main([path, "loop.learning_rate=1e-9", "loop.weight_decay=0"]) == 0
    for name, tensor in SkinVAE.load(later / "run" / "skin_vae").state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-6)
    # Numbers of tokens are no weights: the same skin VAE may be trained further for different ones.
    assert initial_model(load_recipe(path, ["model.tokens_per_skin=4"])).config.tokens_per_skin == 4
    assert initial_model(load_recipe(path, ["model.cond_tokens=5"])).config.cond_tokens == 5


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "model.num_layers_decoder=2",
            "error: 'start_from': the weights in 'START' do not match the recipe's "
            "'model.num_layers_decoder'; set model.num_layers_decoder=1, or",
        ),
        (
            "model.fsq_levels=[8,4,2]",
            "error: 'start_from': the weights in 'START' do not match the recipe's 'model.fsq_levels'",
        ),
        (
            "start_from=NOWHERE",
            "error: 'start_from': NOWHERE: no skin VAE found; pass a policy or skin_vae directory",
        ),
    ],
)
def test_weights_of_another_kind_are_no_start(tmp_path, capsys, override, message):
    folder = tmp_path / "vae"
    SkinVAE(SkinVAEConfig(**SKIN_VAE["model"])).save(folder)
    path = write(tmp_path, {**SKIN_VAE, "start_from": str(folder)})
    assert main([path, override]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(message.replace("START", str(folder)))
    assert printed.count("\n") == 1
    assert not (tmp_path / "run").exists()


# ---------------------------------------------------------------- validation


def test_validation_measures_held_out_bones_and_changes_nothing(tmp_path, capsys):
    path = write(tmp_path, {**SKIN_VAE, "continuous_steps": 3})
    assert main([path]) == 0
    plain = metrics(tmp_path / "run")
    validated = [path, "validation={every: 2, creatures: 3, keep: best, measure: creatures/iou}"]
    assert main([*validated, "loop.resume=false"]) == 0
    lines = metrics(tmp_path / "run")
    assert [{key: line[key] for key in line if "/" not in key} for line in lines] == plain
    assert {key for key in lines[0] if "/" in key} == {f"validation/creatures/{name}" for name in MEASURES}
    # Step 2 still decodes continuous latents, so it cannot be the best.
    best = max(lines[1:], key=lambda line: line["validation/creatures/iou"])
    assert f"kept step {best['step']:.0f}: validation/creatures/iou" in capsys.readouterr().err
    recipe = load_recipe(*validated[:1], validated[1:])
    checks = validation_of(recipe, BoneExamples(recipe))
    vae = SkinVAE.load(tmp_path / "run" / "skin_vae")
    parts = checks.batches["creatures"]
    assert [count for _, count in parts] == [2, 1]
    total = sum(float(checks.losses(vae, batch, 5)["iou"].detach()) * count for batch, count in parts)
    assert total / 3 == pytest.approx(best["validation/creatures/iou"], abs=1e-5)
