"""Stage 2: token sequences, losses by hand, and whole runs through its command line."""

import itertools
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data import make_creature, write_skinned_glb
from data.prepare import PrepareSettings, prepare
from data.typed_recipe import RecipeError
from policy import load as load_policy
from policy import pretrain_tokenrig
from policy.bundle import RigPolicy
from policy.pretrain_skin_vae import load_recipe as load_skin_vae_recipe
from policy.pretrain_tokenrig import (
    LanguageModelRecipe,
    TokenizedMeshes,
    TokenRigRecipe,
    collate,
    initial_model,
    load_recipe,
    load_skin_vae,
    main,
    packing,
    rig_losses,
    sequences,
    validation_of,
    with_own_skin_tokens,
)
from policy.skintokens.skin_vae import SkinVAE, SkinVAEConfig
from policy.tokenrig.configuration import TokenRigConfig
from policy.tokenrig.log_probs import head_logits
from policy.tokenrig.modeling import TokenRigForCausalLM
from policy.tokens.skeleton_tokenizer import tokenize_rig, tokenize_skeleton
from policy.tokens.vocabulary import Vocabulary
from tests.policy.tiny_recipes import SKIN_VAE, TOKENRIG, UNUSABLE, metrics, unusable_source, write

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = str(ROOT / "recipes" / "tokenrig_small.yaml")
WORDS = Vocabulary(codebook=64, tokens_per_skin=2)


@pytest.fixture(scope="module")
def vae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vae") / "skin_vae"
    torch.manual_seed(3)
    vae = SkinVAE(SkinVAEConfig(**SKIN_VAE["model"]))
    with torch.no_grad():
        for parameter in vae.parameters():
            parameter.mul_(3)  # so that bones get different codes
    vae.save(folder)
    return folder


@pytest.fixture
def path(tmp_path, vae_folder) -> str:
    """A recipe file whose run goes to tmp_path / "run"."""
    return write(tmp_path, {**TOKENRIG, "skin_vae": str(vae_folder)})


@pytest.fixture
def recipe(path) -> TokenRigRecipe:
    return load_recipe(path, [])


def batch_of(recipe: TokenRigRecipe, indices: list[int]):
    examples = TokenizedMeshes(recipe, WORDS)
    return collate([examples[index] for index in indices])


# ---------------------------------------------------------------- sequences


def test_sequences_are_the_tokenized_rigs(recipe):
    batch, vae = batch_of(recipe, [0, 1, 2]), load_skin_vae(recipe)
    ids, real = sequences(batch, vae, WORDS)
    starts = np.cumsum([0, *batch["bones"]])
    longest = 0
    for row, (start, end) in enumerate(itertools.pairwise(starts)):
        example = TokenizedMeshes(recipe, WORDS).rigs[row]
        assert end - start == len(example.joints)
        seen = (batch[f"encoder_{name}"][start:end] for name in ("points", "normals", "weights"))
        codes = vae.encode_skin(*seen).numpy()
        assert len({tuple(bone) for bone in codes}) > 1  # so that a wrong order of bones would show
        expected = tokenize_rig(example.joints, example.parents, codes, "articulation", WORDS)
        assert ids[row, : len(expected)].tolist() == expected
        assert real[row].tolist() == [True] * len(expected) + [False] * (ids.shape[1] - len(expected))
        assert (ids[row, len(expected) :] == WORDS.pad).all()
        longest = max(longest, len(expected))
    assert ids.shape == real.shape == (3, longest)
    assert ids.dtype == torch.int64


def test_skeletons_alone_without_a_vae(recipe):
    batch = batch_of(recipe, [0, 1])
    ids, real = sequences(batch, None, WORDS)
    for row in range(2):
        example = TokenizedMeshes(recipe, WORDS).rigs[row]
        expected = tokenize_skeleton(example.joints, example.parents, "articulation", WORDS)
        assert ids[row][real[row]].tolist() == expected
        assert expected[-1] == WORDS.skeleton_eos


def test_codes_are_those_of_float32_also_in_mixed_precision(recipe):
    batch, vae = batch_of(recipe, list(range(8))), load_skin_vae(recipe)
    expected, _ = sequences(batch, vae, WORDS)
    with torch.autocast("cpu", torch.bfloat16):
        mixed, _ = sequences(batch, vae, WORDS)
        rounded = vae.encode_skin(batch["encoder_points"], batch["encoder_normals"], batch["encoder_weights"])
    assert torch.equal(mixed, expected)
    # Otherwise some codes would differ: the test would see it.
    exact = vae.encode_skin(batch["encoder_points"], batch["encoder_normals"], batch["encoder_weights"])
    assert not torch.equal(rounded, exact)


def test_what_the_skin_encoder_sees_belongs_to_each_bone(recipe):
    item = TokenizedMeshes(recipe, WORDS)[0]
    example = TokenizedMeshes(recipe, WORDS).rigs[0]
    row_of = {point.tobytes(): row for row, point in enumerate(example.points)}
    for bone in range(len(example.joints)):
        rows = [row_of[point.numpy().tobytes()] for point in item.encoder_points[bone]]
        assert np.array_equal(item.encoder_weights[bone].numpy(), example.weights[rows, bone])
        assert np.array_equal(item.encoder_normals[bone].numpy(), example.normals[rows])
    assert torch.equal(item.points, torch.from_numpy(example.points[:48]))


def test_the_class_is_written(recipe, path):
    assert TokenizedMeshes(recipe, WORDS)[0].skeleton[1] == WORDS.class_id("articulation")
    without = load_recipe(path, ["class_name=null"])
    assert TokenizedMeshes(without, WORDS)[0].skeleton[1] == WORDS.class_none


@pytest.mark.parametrize(("own", "written"), [("vroid", "vroid"), ("dragon", "articulation")])
def test_a_class_that_a_prepared_rig_brings_wins_if_it_is_known(path, tmp_path, own, written):
    creature = make_creature(0)
    write_skinned_glb(tmp_path / "rig.glb", creature.mesh, creature.rig)
    prepare([tmp_path / "rig.glb"], tmp_path / "prepared", PrepareSettings(class_name=own))
    recipe = load_recipe(path, [f"data.sources=[{{prepared: {tmp_path / 'prepared'}}}]"])
    assert TokenizedMeshes(recipe, WORDS)[0].skeleton[1] == WORDS.class_id(written)


# ---------------------------------------------------------------- losses


def test_some_skin_tokens_are_the_models_own(recipe):
    vae = load_skin_vae(recipe)
    model = initial_model(recipe, vae)
    batch = batch_of(recipe, [0, 1, 2, 3])
    ids, _ = sequences(batch, vae, WORDS)
    assert torch.equal(with_own_skin_tokens(model, ids, batch, 0.0, (0, 5)), ids)
    read = with_own_skin_tokens(model, ids, batch, 1.0, (0, 5))
    assert torch.equal(read, with_own_skin_tokens(model, ids, batch, 1.0, (0, 5)))
    assert not torch.equal(read, with_own_skin_tokens(model, ids, batch, 1.0, (0, 6)))
    skin = (ids >= WORDS.skin_first) & (ids < WORDS.eos)
    assert torch.equal(read[~skin], ids[~skin])
    assert ((read[skin] >= WORDS.skin_first) & (read[skin] < WORDS.eos)).all()
    # Shares are uniform in [0, 1]; an untrained model's draws are hardly ever the true ones.
    changed = (read != ids)[skin].float().mean()
    assert 0.1 < changed < 0.9


def test_own_skin_tokens_are_drawn_from_the_models_distribution(recipe, monkeypatch):
    vae = load_skin_vae(recipe)
    model = initial_model(recipe, vae)
    favourite = 3

    def certain(hidden, words):
        logits = head_logits(hidden, words)
        assert logits.shape[1] == WORDS.codebook
        logits[:, favourite] = 50.0
        return logits

    monkeypatch.setattr(pretrain_tokenrig, "head_logits", certain)
    batch = batch_of(recipe, [0, 1])
    ids, _ = sequences(batch, vae, WORDS)
    read = with_own_skin_tokens(model, ids, batch, 1.0, (0, 1))
    assert (read != ids).any()
    assert (read[read != ids] == WORDS.skin_first + favourite).all()


@pytest.mark.parametrize("packed", [False, True])
def test_hidden_states_of_own_tokens_are_those_that_predict_them(recipe, packed):
    """Against the plain pass over all positions, at every SkinToken."""
    vae = load_skin_vae(recipe)
    model = initial_model(recipe, vae).eval()
    batch = batch_of(recipe, [0, 1, 2])
    ids, real = sequences(batch, vae, WORDS)
    clouds = {"points": batch["points"], "normals": batch["normals"]}
    with torch.no_grad():
        how = {"packed": True, "completion_lengths": real[:, 2:].sum(1)} if packed else {}
        hidden = model.completion_hidden_states(ids, **clouds, **how)
        found = head_logits(hidden, model.get_output_embeddings().weight)
        expected = model(input_ids=ids, **clouds).logits[:, 1:-1]
    torch.testing.assert_close(found[real[:, 2:]], expected[real[:, 2:]], atol=1e-4, rtol=1e-4)


def test_a_run_with_own_tokens_reads_them_and_learns_the_true_ones(tmp_path, path, monkeypatch):
    seen = []

    def spied(*arguments):
        seen.append(with_own_skin_tokens(*arguments))
        return seen[-1]

    monkeypatch.setattr(pretrain_tokenrig, "with_own_skin_tokens", spied)
    assert main([path, "own_token_share=1.0"]) == 0
    assert len(seen) == 3  # of six steps, of which three are of the skeleton alone
    assert all(math.isfinite(row["loss"]) for row in metrics(tmp_path / "run"))


# ---------------------------------------------------------------- the command


def test_a_run_writes_a_policy_that_loads(tmp_path, path, vae_folder, capsys):
    before = (vae_folder / "model.safetensors").read_bytes()
    assert main([path, "loop.dataloader_workers=1"]) == 0
    policy = load_policy(tmp_path / "run" / "policy")
    assert policy.vocabulary == WORDS
    assert policy.model.config.hidden_size == 16
    # The skin VAE is frozen: the policy's is the given one, rounded to the bfloat16 the policy is stored in.
    original = SkinVAE.load(vae_folder).state_dict()
    for name, tensor in policy.skin_vae.state_dict().items():
        assert torch.equal(tensor, original[name].bfloat16().float())
    assert (vae_folder / "model.safetensors").read_bytes() == before
    lines = metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [2, 4, 6]
    # Skeletons alone for three steps: the second line's mean is of its last step only.
    assert ["skin" in line for line in lines] == [False, True, True]
    assert sorted(item.name for item in (tmp_path / "run").iterdir()) == [
        "metrics.jsonl",
        "policy",
        "recipe.yaml",
        "state-6",
    ]
    assert load_recipe(str(tmp_path / "run" / "recipe.yaml"), []) == load_recipe(
        path, ["loop.dataloader_workers=1"]
    )
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "TokenRig: 100%" in printed.err
    assert "shared tensor" not in printed.err  # of accelerate, in the middle of the bar at every checkpoint


def test_the_first_loss_is_that_of_guessing_among_legal_tokens(tmp_path, path):
    # The loss is of the grammar's distribution: about ln 256 per coordinate and ln 64 per SkinToken, not the
    # whole vocabulary's ln 332. Class and ends excepted, hence the width.
    assert main([path, "loop.max_steps=2", "loop.learning_rate=1e-6", "skeleton_only_steps=0"]) == 0
    (line,) = metrics(tmp_path / "run")
    assert abs(line["skin"] - math.log(64)) < 0.3
    assert abs(line["skeleton"] - math.log(256)) < 0.5
    assert line["skin"] < line["loss"] < line["skeleton"]


@pytest.mark.parametrize("extra", [False, True])
def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, vae_folder, monkeypatch, capsys, extra):
    paths, tiny = {}, {**TOKENRIG, "skin_vae": str(vae_folder)}
    if extra:
        tiny["validation"] = {"every": 5, "creatures": 2, "keep": "best"}
        tiny["own_token_share"] = 0.5
    for name in ("whole", "broken"):
        (tmp_path / name).mkdir()
        paths[name] = write(tmp_path / name, tiny)
    assert main([paths["whole"]]) == 0
    with monkeypatch.context() as patch:
        left = iter(range(4))  # the fifth step is not finished

        def until_stopped(*arguments):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return rig_losses(*arguments)

        patch.setattr(pretrain_tokenrig, "rig_losses", until_stopped)
        assert main([paths["broken"]]) == 130
    assert "interrupted; " in capsys.readouterr().err
    assert (tmp_path / "broken" / "run" / "state-3").is_dir()
    assert not (tmp_path / "broken" / "run" / "policy").exists()
    assert main([paths["broken"]]) == 0
    files = [tmp_path / name / "run" / "policy" / "model.safetensors" for name in paths]
    assert files[0].read_bytes() == files[1].read_bytes()
    assert metrics(tmp_path / "broken" / "run") == metrics(tmp_path / "whole" / "run")


def test_it_learns_a_rig_by_heart(tmp_path, path):
    creature = make_creature(0, "snake")
    write_skinned_glb(tmp_path / "rig.glb", creature.mesh, creature.rig)
    changes = ["max_steps=80", "logging_steps=10", "learning_rate=1e-2", "warmup_steps=5", "save_steps=80"]
    overrides = [
        f"data.sources=[{{files: {tmp_path}/*.glb}}]",
        "skeleton_only_steps=0",
        *(f"loop.{change}" for change in changes),
    ]
    assert main([path, *overrides]) == 0
    lines = metrics(tmp_path / "run")
    assert lines[-1]["skeleton"] < 0.5 * lines[0]["skeleton"]


def test_a_loss_that_is_no_number_ends_with_1_and_one_sentence(path, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(
        pretrain_tokenrig, "rig_losses", lambda log_probs, *others: {"loss": log_probs.sum() * math.nan}
    )
    assert main([path]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("failed: the loss is nan at step 1; lower 'loop.learning_rate'")
    assert not (tmp_path / "run" / "policy").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.sources=[{files: NOWHERE/*.glb}]", "error: NOWHERE/*.glb: no file matches"),
        ("skin_vae=NOWHERE", "error: 'skin_vae': NOWHERE: no skin VAE found"),
        ("encoder_points=0", "error: 'encoder_points' must be at least 1, not 0"),
        ("skeleton_only_steps=-1", "error: 'skeleton_only_steps' must be at least 0, not -1"),
        (
            "class_name=articulate",
            "error: 'class_name' must be one of rignet, vroid, articulation or null, not",
        ),
        (
            "mesh_encoder.width=15",
            "error: 'mesh_encoder': mesh encoder width 15 is not a multiple of heads 2",
        ),
        ("language_model.hidden_size=0", "error: 'language_model.hidden_size' must be above 0, not 0"),
        ("language_model.head_dim=7", "error: 'language_model.head_dim' must be even, not 7"),
        (
            "language_model={num_attention_heads: 3, num_key_value_heads: 2}",
            "error: 'language_model.num_attention_heads' 3 must be a multiple of",
        ),
        (
            "hidden_size=8",
            "error: unknown key 'hidden_size'; the nearest valid key is 'language_model.hidden_size'",
        ),
    ],
)
def test_wrong_input_ends_with_2_and_writes_nothing(tmp_path, path, capsys, override, message):
    assert main([path, override]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(message)
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_damaged_vae_is_refused_by_name(tmp_path, path, vae_folder, capsys):
    for damage in ("config.json", "model.safetensors"):
        folder = tmp_path / damage
        folder.mkdir()
        for file in vae_folder.iterdir():
            content = file.read_bytes()
            (folder / file.name).write_bytes(content[:20] if file.name == damage else content)
        assert main([path, f"skin_vae={folder}"]) == 2
        assert capsys.readouterr().err.startswith("error: 'skin_vae': ")


def test_a_policys_folder_gives_its_vae(path, tmp_path):
    assert main([path, "loop.max_steps=1"]) == 0
    recipe = load_recipe(path, [f"skin_vae={tmp_path / 'run' / 'policy'}"])
    vae = load_skin_vae(recipe)
    assert vae.config.codebook_size == 64
    assert not vae.training
    assert not any(parameter.requires_grad for parameter in vae.parameters())


def test_what_is_no_policy_is_not_overwritten(tmp_path, path, capsys):
    photos = tmp_path / "run" / "policy"
    photos.mkdir(parents=True)
    (photos / "cat.png").write_bytes(b"cat")
    assert main([path]) == 2  # before the training, not after
    assert capsys.readouterr().err.startswith("error: 'loop.output_dir': ")
    assert [item.name for item in photos.iterdir()] == ["cat.png"]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


@pytest.mark.parametrize("kind", UNUSABLE)
def test_no_run_starts_without_rigs(tmp_path, path, capsys, kind):
    override, message = unusable_source(tmp_path, kind)
    assert main([path, override]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(message)
    # One sentence, and of broken files a line each.
    assert printed.err.count("\n") == (3 if kind == "broken" else 1)
    assert not (tmp_path / "run").exists()


def test_the_shipped_recipe_is_valid(capsys):
    recipe = load_recipe(SHIPPED, [])
    assert recipe.language_model.hidden_size == 192
    # The shipped pair is of the recipe's size, so it can be trained further (docs/pretraining.md).
    pair = ROOT / "checkpoints" / "small"
    shipped = load_recipe(SHIPPED, [f"start_from={pair}", f"skin_vae={pair}", "skeleton_only_steps=0"])
    assert initial_model(shipped, load_skin_vae(shipped)).config.vocabulary["codebook"] == 4096
    assert main([SHIPPED, "--print-recipe"]) == 0
    assert "num_hidden_layers: 5" in capsys.readouterr().out


# ---------------------------------------------------------------- validation


def test_validation_measures_whole_rigs_and_keeps_the_best(tmp_path, path, capsys):
    creature = make_creature(0)
    write_skinned_glb(tmp_path / "rig.glb", creature.mesh, creature.rig)
    measured = ["validation.every=2", "validation.creatures=3", f"validation.rigs={tmp_path}/rig.glb"]
    assert main([path]) == 0
    plain = metrics(tmp_path / "run")
    assert main([path, *measured, "validation.keep=best", "loop.resume=false"]) == 0
    lines = metrics(tmp_path / "run")
    names = [{key for key in line if key.startswith("validation/")} for line in lines]
    skeletons = {f"validation/{one}/{loss}" for one in ("rigs", "creatures") for loss in ("loss", "skeleton")}
    # Steps 1 to 3 train skeletons alone, and that is what step 2 measures.
    assert names == [skeletons, *[skeletons | {"validation/rigs/skin", "validation/creatures/skin"}] * 2]
    assert [{key: line[key] for key in line if "/" not in key} for line in lines] == plain
    best = min(lines[1:], key=lambda line: line["validation/rigs/loss"])
    assert f"kept step {best['step']:.0f}: validation/rigs/loss" in capsys.readouterr().err
    assert main([path, "validation={every: 2, measure: rigs/skin}"]) == 2
    assert "'validation.measure' must be one of creatures/loss, creatures/" in capsys.readouterr().err


def test_what_validation_measures_is_the_exported_model(tmp_path, path, vae_folder):
    recipe = load_recipe(path, ["validation.every=6", "validation.creatures=3", "skeleton_only_steps=0"])
    assert main([path, "validation.every=6", "validation.creatures=3", "skeleton_only_steps=0"]) == 0
    line = metrics(tmp_path / "run")[-1]
    policy = load_policy(tmp_path / "run" / "policy")  # rounded to bfloat16
    vae = load_skin_vae(recipe)
    checks = validation_of(recipe, TokenizedMeshes(recipe, WORDS), vae)
    totals = {"loss": 0.0, "skeleton": 0.0, "skin": 0.0}
    for batch, count in checks.batches["creatures"]:
        ids, real = sequences(batch, vae, WORDS)
        scored = policy.model(
            input_ids=ids, points=batch["points"], normals=batch["normals"], completion_ids=ids[:, 2:]
        )
        for name, value in rig_losses(scored.log_probs, ids[:, 2:], real[:, 2:], WORDS).items():
            totals[name] += value.item() * count / 3
    for name, value in totals.items():
        assert line[f"validation/creatures/{name}"] == pytest.approx(value, rel=2e-2)


# ---------------------------------------------------------------- starting weights


@pytest.fixture(scope="module")
def start_folder(tmp_path_factory, vae_folder) -> Path:
    folder = tmp_path_factory.mktemp("start")
    assert main([write(folder, {**TOKENRIG, "skin_vae": str(vae_folder)}), "loop.max_steps=2"]) == 0
    return folder / "run" / "policy"


def test_start_from_loads_the_weights(tmp_path, path, start_folder):
    overrides = [f"start_from={start_folder}", "loop.learning_rate=1e-9", "loop.weight_decay=0"]
    recipe = load_recipe(path, overrides)
    expected = load_policy(start_folder).model.state_dict()
    first = initial_model(recipe, load_skin_vae(recipe)).state_dict()
    assert all(torch.equal(first[name], expected[name]) for name in expected)
    assert next(iter(first.values())).dtype == torch.float32
    assert main([path, *overrides]) == 0
    after = load_policy(tmp_path / "run" / "policy")
    assert after.vocabulary == WORDS
    for name, tensor in after.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5)


def test_start_from_may_write_another_number_of_tokens_per_bone(tmp_path, path, start_folder, vae_folder):
    config = tmp_path / "vae" / "config.json"
    shutil.copytree(vae_folder, config.parent)
    config.write_text(json.dumps({**json.loads(config.read_text()), "tokens_per_skin": 4}))
    assert main([path, f"start_from={start_folder}", f"skin_vae={config.parent}"]) == 0
    assert load_policy(tmp_path / "run" / "policy").vocabulary.tokens_per_skin == 4


def test_start_from_keeps_the_vocabulary_of_the_start(path, vae_folder, tmp_path):
    recipe = load_recipe(path, [])
    vae = load_skin_vae(recipe)
    config = initial_model(recipe, vae).config
    config.vocabulary = Vocabulary(codebook=64, tokens_per_skin=2, classes=("dragon", "horse")).to_dict()
    model = TokenRigForCausalLM(TokenRigConfig(**{**config.to_dict(), "vocab_size": None}))
    RigPolicy(model, vae).save(tmp_path / "dragons")
    start = f"start_from={tmp_path / 'dragons'}"
    again = load_recipe(path, [start, "class_name=dragon"])
    assert initial_model(again, vae).config.get_vocabulary().classes == ("dragon", "horse")
    with pytest.raises(RecipeError, match=r"'class_name': .* has dragon, horse, not 'articulation'"):
        initial_model(load_recipe(path, [start]), vae)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "language_model.num_hidden_layers=2",
            "error: 'start_from': the weights in 'START' do not match the recipe's "
            "'language_model.num_hidden_layers'; set language_model.num_hidden_layers=1, or",
        ),
        (
            "mesh_encoder.token_num=5",
            "error: 'start_from': the weights in 'START' do not match the recipe's 'mesh_encoder.token_num'; "
            "set mesh_encoder.token_num=6, or",
        ),
        ("start_from=NOWHERE", "error: 'start_from': NOWHERE: no config.json; pass a policy directory"),
    ],
)
def test_weights_of_another_kind_are_no_start(tmp_path, path, start_folder, capsys, override, message):
    assert main([path, f"start_from={start_folder}", override]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(message.replace("START", str(start_folder)))
    assert printed.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_start_with_another_codebook_keeps_all_but_its_skin_tokens(tmp_path, path, start_folder, capsys):
    SkinVAE(SkinVAEConfig(**{**SKIN_VAE["model"], "fsq_levels": (8, 4)})).save(tmp_path / "other")
    overrides = [f"start_from={start_folder}", f"skin_vae={tmp_path / 'other'}"]
    recipe = load_recipe(path, overrides)
    before = load_policy(start_folder)
    model = initial_model(recipe, load_skin_vae(recipe))
    assert f"'{start_folder}' has 64 SkinTokens and" in capsys.readouterr().err
    old, new = before.vocabulary, model.config.get_vocabulary()
    assert new == replace(old, codebook=32)
    rows = model.transformer.get_input_embeddings().weight
    assert rows is model.transformer.lm_head.weight
    assert rows.shape[0] == model.config.vocab_size == new.size
    for name, tensor in before.model.state_dict().items():
        if "embed_tokens" not in name and "lm_head" not in name:
            assert torch.equal(model.state_dict()[name], tensor)
    start = before.model.transformer.get_input_embeddings().weight
    assert torch.equal(rows[: new.skin_first], start[: old.skin_first])
    assert torch.equal(rows[new.eos], start[old.eos])
    assert not torch.equal(rows[new.skin_first : new.eos], start[old.skin_first : old.skin_first + 32])
    assert main([path, *overrides]) == 0
    assert load_policy(tmp_path / "run" / "policy").vocabulary == new


def test_a_start_with_another_code_of_the_same_size_keeps_its_weights(tmp_path, path, start_folder, capsys):
    torch.manual_seed(1)
    SkinVAE(SkinVAEConfig(**SKIN_VAE["model"])).save(tmp_path / "other")
    for overrides, noted in (([f"skin_vae={tmp_path / 'other'}"], True), ([], False)):
        recipe = load_recipe(path, [f"start_from={start_folder}", *overrides])
        model = initial_model(recipe, load_skin_vae(recipe))
        assert ("writes SkinTokens of another skin VAE than" in capsys.readouterr().err) == noted
        assert model.config.skin_codes is None
        before = load_policy(start_folder).model.state_dict()
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_rows_without_padding_train_the_same(tmp_path, path, monkeypatch):
    recipe = load_recipe(path, [])
    real = torch.tensor([[True] * 6, [True] * 4 + [False] * 2])
    arguments = packing(initial_model(recipe, load_skin_vae(recipe)), real)
    assert arguments.pop("completion_lengths").tolist() == [4, 2]
    assert arguments == {"packed": True}
    options = ["validation={every: 3, creatures: 3}"]
    assert main([path, f"loop.output_dir={tmp_path / 'packed'}", *options]) == 0
    monkeypatch.setattr(pretrain_tokenrig, "packing", lambda model, real: {})
    assert main([path, f"loop.output_dir={tmp_path / 'plain'}", *options]) == 0
    for packed, plain in zip(metrics(tmp_path / "packed"), metrics(tmp_path / "plain"), strict=True):
        assert packed == pytest.approx(plain, rel=1e-4)


def test_steps_of_skeletons_alone_load_no_weights(recipe):
    # A step has two examples: the first six are of the three steps without SkinTokens.
    examples = TokenizedMeshes(recipe, WORDS, skeletons=6)
    for index, bones in ((5, 0), (6, len(examples.rigs[6].joints))):
        item, whole = examples[index], TokenizedMeshes(recipe, WORDS)[index]
        assert len(item.encoder_points) == bones
        assert item.skeleton == whole.skeleton
        assert torch.equal(item.points, whole.points)
        assert torch.equal(item.normals, whole.normals)
    ids, _ = sequences(collate([examples[4], examples[5]]), None, WORDS)
    assert torch.equal(ids, sequences(batch_of(recipe, [4, 5]), None, WORDS)[0])


def test_own_tokens_begin_at_their_step(path, monkeypatch):
    steps = []

    def spied(model, ids, batch, share, seed):
        steps.append(seed[1])
        return ids

    monkeypatch.setattr(pretrain_tokenrig, "with_own_skin_tokens", spied)
    assert main([path, "own_token_share=1.0", "own_token_start=5"]) == 0
    assert steps == [5]


def test_gradient_checkpointing_trains_the_same(tmp_path, path):
    assert main([path, f"loop.output_dir={tmp_path / 'plain'}"]) == 0
    assert main([path, f"loop.output_dir={tmp_path / 'saving'}", "loop.gradient_checkpointing=true"]) == 0
    plain, saving = (
        load_policy(tmp_path / name / "policy").model.state_dict() for name in ("plain", "saving")
    )
    for name, tensor in plain.items():
        torch.testing.assert_close(saving[name], tensor, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize("stage", ["skin_vae", "tokenrig"])
def test_the_recipes_of_the_released_size_are_valid(stage):
    """The sizes are the defaults, which are the released ones; the augmentations are the paper's."""
    shipped = Path(SHIPPED).with_name(f"{stage}_released.yaml")
    if stage == "skin_vae":
        recipe = load_skin_vae_recipe(str(shipped), [])
        assert recipe.model == SkinVAEConfig()
        assert recipe.nested_dropout
    else:
        recipe = load_recipe(str(shipped), [])
        assert recipe.language_model == LanguageModelRecipe()
        config = TokenRigConfig(mesh_encoder=recipe.mesh_encoder.to_dict())
        assert config.mesh_encoder == TokenRigConfig().mesh_encoder
    assert recipe.data.points == 54000
    assert recipe.loop.muon_matrices == "attention"
    augment = recipe.data.augment
    chances = (augment.scale_probability, augment.pose_probability, augment.rotation_probability)
    assert chances == (0.5, 0.5, 0.2)
    assert (augment.max_pose_deg, augment.max_rotation_deg, augment.max_deleted) == (30, 15, 0.5)
    assert (augment.joint_noise, augment.vertex_noise) == (1e-2, 1e-3)
