"""The reconstruction report of skin VAEs: scores by hand, its rigs, and the command."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from data import EVAL_FIRST_SEED, Mesh, Rig, make_creature, write_skinned_glb
from policy.pretrain_skin_vae import skin_iou
from policy.skin_report import (
    SkinReportRecipe,
    codebook_use,
    held_out_rig,
    held_out_rigs,
    load_recipe,
    main,
    reconstruct,
    report,
    token_lengths,
    weight_scores,
)
from policy.skintokens.skin_vae import SkinVAE, SkinVAEConfig
from tests.policy.tiny_recipes import SKIN_VAE
from tests.seams import flat_shaded

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = str(ROOT / "recipes" / "skin_report.yaml")
SMALL = {"points": 48, "dense_pool": 48, "vertices": 32, "encoder_points": 20, "count": 2}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two untrained VAEs of the same sizes."""
    result = []
    for seed in (1, 2):
        folder = tmp_path_factory.mktemp("vaes") / f"vae{seed}"
        torch.manual_seed(seed)
        SkinVAE(SkinVAEConfig(**SKIN_VAE["model"])).save(folder)
        result.append(str(folder))
    return result


@pytest.fixture
def path(tmp_path, folders) -> str:
    path = tmp_path / "report.yaml"
    values = {**SMALL, "skin_vaes": folders, "output_dir": str(tmp_path / "out")}
    path.write_text(json.dumps(values))  # JSON is YAML
    return str(path)


# ---------------------------------------------------------------- scores


def test_weight_scores_by_hand():
    # Columns are bones: 0 agrees at one of three influenced vertices, 1 has no influence on either side,
    # 2 is missed. 0.01 itself is no influence.
    predicted = np.array([[0.5, 0.0, 0.0], [0.2, 0.01, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    truth = np.array([[0.9, 0.0, 1.0], [0.0, 0.0, 0.0], [0.3, 0.005, 0.0], [0.0, 0.0, 0.0]], np.float32)
    scores = weight_scores(predicted, truth)
    assert scores.iou == pytest.approx((1 / 3 + 1 + 0) / 3)
    assert scores.l1 == pytest.approx(((0.4 + 0.2 + 0.3) / 3 + 0 + 1.0) / 3)
    assert scores.l1_dense == pytest.approx((0.9 + 0.015 + 1.0) / 12)
    assert scores.mask_accuracy == pytest.approx((12 - 2 - 1) / 12)  # two wrong of bone 0, one of bone 2
    assert weight_scores(predicted, truth, threshold=0.4).iou == pytest.approx((1 + 1 + 0) / 3)


def test_iou_is_that_of_the_training():
    rng = np.random.default_rng(0)
    predicted, truth = (rng.random((40, 7), dtype=np.float32) ** 4 for _ in range(2))
    truth[:, 3] = predicted[:, 3] = 0
    expected = skin_iou(
        torch.from_numpy(predicted.T), torch.from_numpy(truth.T), torch.ones(truth.T.shape), 0.1
    ).item()
    assert weight_scores(predicted, truth, 0.1).iou == pytest.approx(expected)


@pytest.mark.parametrize("shapes", [((3, 2), (2, 3)), ((4,), (4,)), ((0, 2), (0, 2))])
def test_weights_of_other_shapes_are_refused(shapes):
    with pytest.raises(ValueError, match=r"weights must be two \(V, J\) arrays of the same shape"):
        weight_scores(*(np.zeros(shape, np.float32) for shape in shapes))


def test_codebook_use_by_hand():
    assert codebook_use(np.array([[3, 3], [3, 3]]), 8) == (1, 1 / 8, 1.0)
    used, share, perplexity = codebook_use(np.array([0, 1, 5, 5]), 8)
    assert (used, share) == (3, 3 / 8)
    # Entropy: 1/4 ln 4 twice and 1/2 ln 2: ln 2 + ln(2) / 2, so 2 ** 1.5.
    assert perplexity == pytest.approx(2**1.5)
    assert codebook_use(np.arange(8), 8)[2] == pytest.approx(8)


def test_lengths_are_powers_of_two_and_the_last():
    def lengths(**sizes):
        return token_lengths(SkinVAE(SkinVAEConfig(**{**SKIN_VAE["model"], **sizes})))

    assert lengths(sample_tokens=8, compress_tokens=8) == [1, 2, 4, 8]
    assert lengths(sample_tokens=6, compress_tokens=6) == [1, 2, 4, 6]
    assert lengths(sample_tokens=16, compress_tokens=8, tokens_per_skin=8) == [8]  # perceivers


# ---------------------------------------------------------------- rigs and rows


def test_held_out_rigs_are_of_seeds_that_no_training_sees():
    rigs = held_out_rigs(SkinReportRecipe(**SMALL))
    assert [rig.name for rig in rigs] == [
        make_creature(EVAL_FIRST_SEED + place).mesh.name for place in range(2)
    ]
    again = held_out_rigs(SkinReportRecipe(**SMALL))
    for rig, other in zip(rigs, again, strict=True):
        assert np.array_equal(rig.encoder_rows, other.encoder_rows)
        assert rig.weights.shape == (len(rig.vertices), len(rig.example.joints))
        assert rig.example.weights.shape == (128, rig.weights.shape[1])


def test_bones_keep_their_order():
    """Weight columns match the cloud, even if the rig's joints are not in depth-first order."""
    vertices = np.array([[-1, 0, 0], [1, 0, 0], [0, 1, 0], [0, -1, 0.5]], np.float32)
    mesh = Mesh(vertices, np.array([[0, 1, 2], [0, 1, 3]]), "flat", np.zeros(3), 1.0)
    joints = np.array([[0, 0, 0], [0.9, 0, 0], [-0.9, 0, 0], [1, 0, 0]], np.float32)
    weights = np.eye(4, dtype=np.float32)
    rig = Rig(joints, np.array([-1, 0, 0, 1]), weights, ("root", "right", "left", "end"))
    ready = held_out_rig(mesh, rig, SkinReportRecipe(points=400, dense_pool=0, encoder_points=4), 0)
    cloud = ready.example
    for bone in range(4):
        heavy = cloud.points[cloud.weights[:, bone].argmax()]
        vertex = vertices[ready.weights[:, bone].argmax()]
        assert np.linalg.norm(heavy - vertex) < 0.4


def test_flat_shading_changes_no_number(folders):
    """Each place counts once, with the normal of the welded surface, however a file splits its vertices."""
    vae = SkinVAE.load(folders[0], dtype=torch.float32)
    creature = make_creature(EVAL_FIRST_SEED)
    recipe = SkinReportRecipe(**{**SMALL, "vertices": 0})
    smooth, flat = (
        held_out_rig(mesh, rig, recipe, 0)
        for mesh, rig in (
            (creature.mesh, creature.rig),
            flat_shaded(creature.mesh, creature.rig),
        )
    )
    assert len(flat.vertices) == len(smooth.vertices)
    assert len(np.unique(flat.vertices, axis=0)) == len(flat.vertices)
    rows = [report(vae, [rig], [4], "mine", threshold=0.3)[0] for rig in (smooth, flat)]
    assert rows[1].l1 == pytest.approx(rows[0].l1, abs=1e-6)
    assert rows[1].l1_dense == pytest.approx(rows[0].l1_dense, abs=1e-6)
    assert (rows[1].iou, rows[1].compression) == pytest.approx((rows[0].iou, rows[0].compression), abs=1e-3)


def test_a_row_says_what_its_reconstructions_are(folders):
    vae = SkinVAE.load(folders[0], dtype=torch.float32)
    rigs = held_out_rigs(SkinReportRecipe(**SMALL))
    rows = report(vae, rigs, [1, 4], "mine", threshold=0.3)
    assert [(row.skin_vae, row.tokens, row.rigs) for row in rows] == [("mine", 1, 2), ("mine", 4, 2)]
    codes, weights = zip(*(reconstruct(vae, rig, [4])[0] for rig in rigs), strict=True)
    scores = [weight_scores(mine, rig.weights, 0.3) for mine, rig in zip(weights, rigs, strict=True)]
    row = rows[1]
    assert row.iou == pytest.approx((scores[0].iou + scores[1].iou) / 2)
    # Two values: standard deviation |a - b| / sqrt(2), over sqrt(2).
    assert row.iou_error == pytest.approx(abs(scores[0].iou - scores[1].iou) / 2)
    assert row.l1 == pytest.approx((scores[0].l1 + scores[1].l1) / 2)
    assert row.mask_accuracy == pytest.approx((scores[0].mask_accuracy + scores[1].mask_accuracy) / 2)
    both = np.concatenate([part.ravel() for part in codes])
    assert (row.codes_used, row.utilisation, row.perplexity) == codebook_use(both, 64)
    assert row.codes_written == len(both) == 4 * row.bones
    assert row.bits_per_bone == 4 * 6  # log2(64)
    entries = sum(rig.weights.size for rig in rigs)
    influences = sum(int((rig.weights > 0.3).sum()) for rig in rigs)
    assert row.compression == pytest.approx(entries * 32 / (row.bones * 24))
    assert row.compression_sparse == pytest.approx(influences * 64 / (row.bones * 24))


def test_decoding_is_at_the_vertices_from_the_codes(folders):
    vae = SkinVAE.load(folders[0], dtype=torch.float32)
    (rig,) = held_out_rigs(SkinReportRecipe(**{**SMALL, "count": 1}))
    (codes, weights), *_ = reconstruct(vae, rig, [2])
    cloud = [torch.from_numpy(part[:48]) for part in (rig.example.points, rig.example.normals)]
    condition = vae.encode_condition(*cloud)
    corners = [torch.from_numpy(part) for part in (rig.vertices, rig.normals)]
    for bone in range(len(codes)):
        rows = rig.encoder_rows[bone]
        seen = (rig.example.points[rows], rig.example.normals[rows], rig.example.weights[rows, bone][None])
        alone = vae.encode_skin(*(torch.from_numpy(part) for part in seen), tokens=2)
        assert alone[0].tolist() == codes[bone].tolist()
        decoded = vae.decode(alone, condition, *corners)[0].numpy()
        np.testing.assert_allclose(decoded, weights[:, bone], atol=1e-5)


# ---------------------------------------------------------------- the command


def test_the_command_compares_vaes(tmp_path, path, folders, capsys):
    assert main([path]) == 0
    rows = json.loads((tmp_path / "out" / "skin_report.json").read_text())
    assert [(row["skin_vae"], row["tokens"]) for row in rows] == [
        (folder, tokens) for folder in folders for tokens in (1, 2, 4)
    ]
    assert rows[0]["codes_written"] == rows[0]["bones"]
    with (tmp_path / "out" / "skin_report.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [float(row["iou"]) for row in table] == [row["iou"] for row in rows]
    assert list(table[0]) == list(rows[0])
    printed = capsys.readouterr()
    assert f"{rows[0]['iou']:.3f} ±" in printed.out
    assert f"A: {folders[0]}" in printed.out.replace("\n", "")
    assert f"B: {folders[1]}" in printed.out.replace("\n", "")
    assert "100%" in printed.err


def test_files_and_prepared_folders(tmp_path, path, capsys):
    (tmp_path / "rigs").mkdir()
    for seed in range(6):
        creature = make_creature(seed)
        write_skinned_glb(tmp_path / "rigs" / f"creature{seed}.glb", creature.mesh, creature.rig)
    (tmp_path / "rigs" / "broken.glb").write_bytes(b"glTF")
    assert main([path, f"rigs={tmp_path}/rigs/*.glb", "count=3", "tokens=[2]"]) == 0
    (row, _) = json.loads((tmp_path / "out" / "skin_report.json").read_text())
    assert row["rigs"] == 3
    assert "skipped: " in capsys.readouterr().err
    from data.prepare import main as prepare

    prepared = tmp_path / "prepared"
    assert prepare([f"{tmp_path}/rigs", "--out", str(prepared)]) in (0, None)
    entries = json.loads((prepared / "manifest.json").read_text())["rigs"]
    held_out = sum(entry["split"] == "eval" for entry in entries)
    assert 0 < held_out < 6
    assert main([path, f"rigs={prepared}", "tokens=[2]"]) == 0
    report = json.loads((tmp_path / "out" / "skin_report.json").read_text())
    assert report[0]["rigs"] == min(2, held_out)
    # In a list, too, a prepared folder stands for its held-out rigs; files add to them.
    for rigs, count in (
        (f"[{prepared}]", held_out),
        (f"[{tmp_path}/rigs/creature0.glb, {prepared}]", held_out + 1),
    ):
        assert main([path, f"rigs={rigs}", "tokens=[2]", "count=9"]) == 0
        assert json.loads((tmp_path / "out" / "skin_report.json").read_text())[0]["rigs"] == count


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("skin_vaes=[NOWHERE]", "error: 'skin_vaes': NOWHERE: no skin VAE found"),
        ("skin_vaes=[]", "error: 'skin_vaes' is empty; list at least one directory"),
        ("skin_vaes=[a,a]", "error: 'skin_vaes' lists a directory twice; list each once"),
        ("tokens=[5]", "error: 'tokens': '"),
        ("tokens=[0]", "error: 'tokens' must be integers of at least 1, not [0]"),
        ("count=0", "error: 'count' must be at least 1, not 0"),
        ("first_seed=5", f"error: 'first_seed' must be at least {EVAL_FIRST_SEED}, not 5: training uses"),
        ("rigs=NOWHERE/*.glb", "error: NOWHERE/*.glb: no file matches"),
    ],
)
def test_wrong_input_ends_with_2_and_one_sentence(tmp_path, path, capsys, override, message):
    assert main([path, override]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(message)
    assert printed.err.count("\n") == 1
    assert not (tmp_path / "out" / "skin_report.json").exists()


def test_the_shipped_recipe_is_valid():
    recipe = load_recipe(SHIPPED, [])
    assert recipe.first_seed >= EVAL_FIRST_SEED
    assert math.isclose(recipe.threshold, 1e-2)
