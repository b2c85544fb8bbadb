import hashlib
import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

from policy.bundle import RigPolicy, load
from policy.convert import describe, export_checkpoint, import_checkpoint, main
from policy.policy_folder import PolicyError
from policy.released.checkpoint import CheckpointError, read_checkpoint, read_safetensors
from policy.tokenrig.modeling import TokenRigForCausalLM
from tests.policy.checkpoint_pairs import RIG, VAE, edited, random_checkpoints

TOLERANCE = {"rtol": 0, "atol": 2e-5}


@pytest.fixture
def imported(tmp_path):
    import_checkpoint(RIG, tmp_path / "policy", vae=VAE)
    return tmp_path / "policy"


def trained(directory: Path, out: Path) -> Path:
    """A trainer's checkpoint of the imported policy: fp32, one weight of the language model changed."""
    model = load(directory).model
    with torch.no_grad():
        model.transformer.model.norm.weight[0] = 2.0
    model.save_pretrained(out)
    return out


def stored(directory: Path) -> dict[str, torch.Tensor]:
    model = read_safetensors([directory / "model.safetensors"])
    skin = read_safetensors([directory / "skin_vae" / "model.safetensors"])
    return {**model, **{f"vae.{name}": tensor for name, tensor in skin.items()}}


# ---------------------------------------------------------------- numerics


@pytest.mark.parametrize("exact", [False, True])
def test_imported_policy_reproduces_the_reference(golden, tmp_path, exact):
    import_checkpoint(RIG, tmp_path / "policy", vae=VAE, rounded_constants=not exact)
    policy = load(tmp_path / "policy")
    points, normals = golden["points"], golden["normals"]
    mesh = policy.encode_mesh(points[None], normals[None])
    torch.testing.assert_close(mesh, golden["mesh_cond"], **TOLERANCE)
    logits = policy.next_token_logits(mesh, golden["lm_prefix"][None])
    torch.testing.assert_close(logits[0], golden["lm_logits"][mesh.shape[1] :], **TOLERANCE)
    condition = policy.skin_vae.encode_condition(points[None], normals[None], int(golden["cond_seed"]))
    weights = policy.skin_vae.decode(golden["dec_indices"], condition, points, normals)
    prefix = "" if exact else "bf16buf_"
    torch.testing.assert_close(condition, golden[f"{prefix}cond_latents"], **TOLERANCE)
    torch.testing.assert_close(weights, golden[f"{prefix}dec_weights"], **TOLERANCE)
    if exact:
        codes = policy.skin_vae.encode_skin(points, normals, golden["enc_skin"])
        assert codes.tolist() == golden["enc_fsq_indices"].tolist()
        rig = policy.decode_rig(golden["decode_ids"], points, normals, condition)
        torch.testing.assert_close(torch.from_numpy(rig.weights), golden["decode_skin_pred"], **TOLERANCE)


# ------------------------------------------------------------- round trips


def test_import_keeps_dtypes_and_writes_checksums(imported):
    tensors = stored(imported)
    original = read_checkpoint(RIG).tensors
    assert {name: t.dtype for name, t in tensors.items()} == dict.fromkeys(tensors, torch.bfloat16)
    assert set(original) - set(tensors) == {"transformer.lm_head.weight"}
    assert all(torch.equal(tensors[name], original[name]) for name in tensors)
    for path in (imported / "model.safetensors", imported / "skin_vae" / "model.safetensors"):
        digest, name = path.with_name(path.name + ".sha256").read_text().split()
        assert (digest, name) == (hashlib.sha256(path.read_bytes()).hexdigest(), path.name)
    assert TokenRigForCausalLM.from_pretrained(imported).dtype == torch.bfloat16


def test_export_like_of_unchanged_weights_is_the_same_file(imported, tmp_path):
    digest = export_checkpoint(imported, tmp_path / "again.ckpt", like=RIG)
    assert (tmp_path / "again.ckpt").read_bytes() == RIG.read_bytes()
    assert digest == hashlib.sha256(RIG.read_bytes()).hexdigest()
    assert (tmp_path / "again.ckpt.sha256").read_text() == f"{digest}  again.ckpt\n"


def test_export_like_changes_nothing_but_the_changed_weights(imported, tmp_path):
    out = tmp_path / "refined.ckpt"
    export_checkpoint(trained(imported, tmp_path / "checkpoint-5"), out, like=RIG)
    before, after = (torch.load(path, weights_only=True) for path in (RIG, out))
    assert before["hyper_parameters"] == after["hyper_parameters"]
    assert list(before["state_dict"]) == list(after["state_dict"])
    different = [
        name for name, t in before["state_dict"].items() if not torch.equal(t, after["state_dict"][name])
    ]
    assert different == ["model.transformer.model.norm.weight"]
    assert after["state_dict"][different[0]].dtype == torch.bfloat16
    with zipfile.ZipFile(RIG) as old, zipfile.ZipFile(out) as new:
        assert new.testzip() is None  # the checksums were recomputed
        changed = [n for n in old.namelist() if old.read(n) != new.read(n)]
        assert len(changed) == 1
    # Apart from that record (128 bytes of 64 bf16 weights) and its checksums the files are the same.
    assert sum(a != b for a, b in zip(RIG.read_bytes(), out.read_bytes(), strict=True)) <= 2 + 3 * 4


def test_import_export_import_is_the_identity(imported, tmp_path):
    export_checkpoint(imported, tmp_path / "a.ckpt", vae_out=tmp_path / "vae.ckpt")
    import_checkpoint(tmp_path / "a.ckpt", tmp_path / "again", vae=tmp_path / "vae.ckpt")
    files = sorted(p.relative_to(imported) for p in imported.rglob("*") if p.is_file())
    assert files == sorted(
        p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file()
    )
    for name in files:
        assert (imported / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_export_has_the_released_keys_order_and_shared_head(imported, tmp_path):
    export_checkpoint(imported, tmp_path / "a.ckpt")
    old, new = (torch.load(path, weights_only=True) for path in (RIG, tmp_path / "a.ckpt"))
    assert list(old["state_dict"]) == list(new["state_dict"])
    assert all(torch.equal(t, new["state_dict"][name]) for name, t in old["state_dict"].items())
    assert old["hyper_parameters"] == new["hyper_parameters"]
    head, embedding = (
        new["state_dict"][f"model.transformer.{name}.weight"] for name in ("lm_head", "model.embed_tokens")
    )
    assert head.data_ptr() == embedding.data_ptr()
    # torch.save writes whole storages: none may be larger than its tensors.
    assert (tmp_path / "a.ckpt").stat().st_size < 1.01 * RIG.stat().st_size


@pytest.mark.parametrize(
    ("prefix", "infix", "dtype", "changes"),
    [
        ("model.", "", torch.float32, {}),
        ("model._orig_mod.", "", torch.bfloat16, {}),
        ("", "_orig_mod.", torch.float32, {}),
        (
            "",
            "",
            torch.float16,
            {"mesh_encoder": {"qkv_bias": True, "use_ln_post": False, "include_pi": True}},
        ),
        ("model.", "", torch.bfloat16, {"vae": {"use_pmpe": False, "embed_include_pi": False}}),
        ("model.", "", torch.bfloat16, {"vae": {"is_learned_queries": False}}),
        ("model.", "", torch.bfloat16, {"vae": {"sample_tokens": 16, "tokens_per_skin": 8}}),
        ("model.", "", torch.bfloat16, {"vae": {"fsq_dim": 3, "latent_channels": 3}}),
    ],
)
def test_other_layouts_round_trip(tmp_path, prefix, infix, dtype, changes):
    rig, vae = random_checkpoints(tmp_path, prefix, infix, dtype, **changes)
    release = import_checkpoint(rig, tmp_path / "policy", vae=vae)
    assert release.unused == ()
    policy = load(tmp_path / "policy")
    config = policy.skin_vae.config
    for name, value in changes.get("vae", {}).items():
        assert getattr(config, name) == value
    encoder = policy.model.config.get_mesh_encoder()
    for name, value in changes.get("mesh_encoder", {}).items():
        assert getattr(encoder, name) == value
    export_checkpoint(tmp_path / "policy", tmp_path / "like.ckpt", like=rig)
    assert (tmp_path / "like.ckpt").read_bytes() == rig.read_bytes()
    export_checkpoint(tmp_path / "policy", tmp_path / "plain.ckpt")
    import_checkpoint(tmp_path / "plain.ckpt", tmp_path / "again", vae=vae)
    assert (tmp_path / "again" / "config.json").read_bytes() == (
        tmp_path / "policy" / "config.json"
    ).read_bytes()
    first, second = stored(tmp_path / "policy"), stored(tmp_path / "again")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[n], second[n]) and first[n].dtype == dtype for n in first)


def test_without_the_vae_checkpoint_released_values_are_assumed(tmp_path, capsys):
    rig, vae = random_checkpoints(
        tmp_path,
        "model.",
        "",
        torch.bfloat16,
        vae={"fsq_levels": (8,) * 5, "num_attention_heads": 12, "width_decoder": 48, "tokens_per_skin": 4},
    )
    assert main(["import", str(rig), "--out", str(tmp_path / "a")]) == 0
    assert "note: no --vae given: assumed the released 12 heads" in capsys.readouterr().out
    assert main(["import", str(rig), "--vae", str(vae), "--out", str(tmp_path / "b")]) == 0
    assert "note:" not in capsys.readouterr().out
    assert (tmp_path / "a/skin_vae/config.json").read_text() == (
        tmp_path / "b/skin_vae/config.json"
    ).read_text()
    # Another size cannot be assumed.
    with pytest.raises(CheckpointError, match=r"does not have the released size .* with --vae"):
        import_checkpoint(RIG, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_hyper_parameters_that_json_would_change(tmp_path):
    def change(content):
        content["hyper_parameters"]["transform_config"] = {"scale": (1, 2), 3: None}
        content["epoch"] = 7

    rig = edited(tmp_path / "rig.ckpt", change)
    release = import_checkpoint(rig, tmp_path / "policy", vae=VAE)
    assert release.other_entries == ("epoch",)
    export_checkpoint(tmp_path / "policy", tmp_path / "out.ckpt")
    assert read_checkpoint(tmp_path / "out.ckpt").hyper_parameters == read_checkpoint(rig).hyper_parameters


# ------------------------------------------------------- trainers' outputs


def test_a_trainers_checkpoint(imported, tmp_path, capsys):
    checkpoint = trained(imported, tmp_path / "checkpoint-5")
    out = tmp_path / "out.ckpt"
    assert main(["export", str(checkpoint), "--out", str(out)]) == 2
    assert "no skin_vae folder" in capsys.readouterr().err
    assert not out.exists()
    assert main(["export", str(checkpoint), "--out", str(out), "--skin-vae", str(imported)]) == 0
    like = tmp_path / "like.ckpt"
    assert main(["export", str(checkpoint), "--out", str(like), "--like", str(RIG)]) == 0
    one, two = (read_checkpoint(path).tensors for path in (out, like))
    assert all(torch.equal(one[name], two[name]) for name in two)
    assert one["transformer.model.norm.weight"][0] == 2.0
    assert main(["info", str(checkpoint)]) == 0
    assert "no skin VAE in this directory" in capsys.readouterr().out


def test_adapters_are_merged(imported, tmp_path):
    base = load(imported).model
    wrapped = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], r=2))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.fill_(0.25)
    # B A of rank 2 times alpha / r = 8 / 2: every entry grows by 2 * 0.25^2 * 4 = 0.5.
    wrapped.peft_config["default"].base_model_name_or_path = str(imported)
    wrapped.save_pretrained(tmp_path / "checkpoint-2")
    export_checkpoint(tmp_path / "checkpoint-2", tmp_path / "out.ckpt", like=RIG)
    old, new = (read_checkpoint(path).tensors for path in (RIG, tmp_path / "out.ckpt"))
    moved = [name for name in old if not torch.equal(old[name], new[name])]
    assert moved == [f"transformer.model.layers.{i}.self_attn.q_proj.weight" for i in range(2)]
    growth = new[moved[0]].float() - old[moved[0]].float()
    torch.testing.assert_close(growth, torch.full_like(growth, 0.5), rtol=0, atol=0.01)
    assert any("PEFT adapters of" in line for line in describe(tmp_path / "checkpoint-2"))


def test_a_policy_that_was_not_imported(fresh_model, vae, tmp_path):
    RigPolicy(fresh_model, vae).save(tmp_path / "own")
    export_checkpoint(tmp_path / "own", tmp_path / "rig.ckpt", vae_out=tmp_path / "vae.ckpt")
    release = import_checkpoint(
        tmp_path / "rig.ckpt", tmp_path / "again", vae=tmp_path / "vae.ckpt", rounded_constants=False
    )
    assert release.vae_config == vae.config
    assert release.config.get_mesh_encoder() == fresh_model.config.get_mesh_encoder()
    before = fresh_model.state_dict()
    assert all(torch.equal(t, before[n].bfloat16()) for n, t in release.model.items())


# -------------------------------------------------------------------- info


def test_info(imported, tmp_path, capsys):
    for path in (RIG, imported):
        assert main(["info", str(path)]) == 0
        text = capsys.readouterr().out
        # Counted in the reference file: 2828 x 64 embedding and so on.
        for part in (
            "87,216",
            "3,200",
            "255,104",
            "295,269",
            "codebook 2,560",
            "4 SkinTokens per bone",
            "bfloat16",
        ):
            assert part in text, part
    assert text.count("matches model.safetensors.sha256") == 2
    assert main(["info", str(VAE)]) == 0
    assert "FSQ levels [8, 8, 8, 5], 4 heads" in capsys.readouterr().out
    with (imported / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x7f")
    assert main(["info", str(imported)]) == 0
    assert "DIFFERS FROM model.safetensors.sha256" in capsys.readouterr().out


def test_import_reports_unused_tensors_and_entries(tmp_path, capsys):
    def change(content):
        state = content["state_dict"]
        state["model.vae.model.embedder.phase"] = torch.zeros(8)
        state["ema.decay"] = torch.zeros(1)
        content["optimizer_states"] = [{}]

    rig = edited(tmp_path / "rig.ckpt", change)
    assert main(["import", str(rig), "--vae", str(VAE), "--out", str(tmp_path / "policy")]) == 0
    text = capsys.readouterr().out
    assert "unused tensors: vae.model.embedder.phase, ema.decay" in text
    assert "unused entries: optimizer_states" in text
    assert "50 tensors of the skin VAE are used for encoding only" in text  # manifest: 50 unused at inference


# --------------------------------------------------------------- bad input


class Malicious:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("command", ["import", "info", "like"])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_does_not_run(imported, tmp_path, capsys, command, zipped):
    marker = tmp_path / "owned"
    content = {"state_dict": {}, "hyper_parameters": {"model_config": Malicious(marker)}}
    bad = tmp_path / "bad.ckpt"
    if zipped:
        torch.save(content, bad)
    else:
        bad.write_bytes(pickle.dumps(content, protocol=2))
    arguments = {
        "import": ["import", str(bad), "--out", str(tmp_path / "out")],
        "info": ["info", str(bad)],
        "like": ["export", str(imported), "--like", str(bad), "--out", str(tmp_path / "out")],
    }[command]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert not marker.exists()
    assert not (tmp_path / "out").exists()
    assert error.count("\n") == 1
    assert "bad.ckpt" in error
    if zipped:
        assert "refers to" in error
        assert "mkdir" in error
    # The file is really malicious: an ordinary unpickler runs it.
    torch.load(bad, weights_only=False) if zipped else pickle.loads(bad.read_bytes())
    assert marker.exists()


@pytest.mark.parametrize("kept", [0, 10, 0.5, 0.999])
def test_truncated_files(tmp_path, capsys, kept):
    content = RIG.read_bytes()
    bad = tmp_path / "cut.ckpt"
    bad.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    assert main(["import", str(bad), "--vae", str(VAE), "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "cut.ckpt" in error
    assert "truncated" in error or "not a checkpoint" in error
    assert not (tmp_path / "out").exists()


def test_an_untied_head_is_kept(tmp_path):
    def untie(content):
        state = content["state_dict"]
        state["model.transformer.lm_head.weight"] = state["model.transformer.lm_head.weight"] + 1
        content["hyper_parameters"]["model_config"]["llm"]["tie_word_embeddings"] = False

    rig = edited(tmp_path / "b.ckpt", untie)
    import_checkpoint(rig, tmp_path / "out", vae=VAE)
    model = load(tmp_path / "out").model
    assert not torch.equal(model.transformer.lm_head.weight, model.get_input_embeddings().weight)
    export_checkpoint(tmp_path / "out", tmp_path / "c.ckpt", like=rig)
    assert (tmp_path / "c.ckpt").read_bytes() == rig.read_bytes()


def test_other_mistakes(imported, tmp_path, capsys):
    out = str(tmp_path / "out")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    torch.save([1, 2], tmp_path / "list.ckpt")
    for arguments, message in [
        (["import", str(tmp_path / "none.ckpt"), "--out", out], "no such file"),
        (["import", str(VAE), "--out", out], "is a VAE checkpoint"),
        (["import", str(RIG), "--vae", str(RIG), "--out", out], ": not a VAE checkpoint"),
        (["import", str(tmp_path / "list.ckpt"), "--out", out], ": no state_dict"),
        (
            ["import", str(RIG), "--vae", str(VAE), "--out", str(tmp_path / "photos")],
            "is not a policy directory",
        ),
        (["export", str(tmp_path / "broken"), "--out", out], "model of type 'llama'"),
        (["export", str(tmp_path / "photos"), "--out", out], "no config.json"),
        (["export", str(imported), "--out", out, "--like", str(VAE)], "missing"),
        (["info", str(tmp_path / "nothing")], "no such file"),
    ]:
        assert main(arguments) == 2, arguments
        error = capsys.readouterr().err
        assert message in error, (arguments, error)
        assert error.startswith("error: ")
        assert not Path(out).exists()
    with pytest.raises(SystemExit) as stopped:
        main(["import", str(RIG)])
    assert stopped.value.code == 2


def test_truncated_weights_of_a_policy(imported, tmp_path, capsys):
    path = imported / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert main(["export", str(imported), "--out", str(tmp_path / "x.ckpt")]) == 2
    assert "model.safetensors: truncated" in capsys.readouterr().err
    path.unlink()
    with pytest.raises(PolicyError, match=r"no model\.safetensors"):
        export_checkpoint(imported, tmp_path / "x.ckpt")


def test_a_failed_export_keeps_the_old_file(imported, tmp_path, monkeypatch):
    out = tmp_path / "x.ckpt"
    out.write_bytes(b"precious")

    def fail(*arguments, **named):
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        export_checkpoint(imported, out)
    assert out.read_bytes() == b"precious"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["policy", "x.ckpt"]


def test_command_line_runs_as_a_module(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "policy.convert",
            "import",
            str(RIG),
            "--vae",
            str(VAE),
            "--out",
            str(tmp_path / "p"),
        ],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "language model" in done.stdout
    assert load(tmp_path / "p").vocabulary.size == 2828
