import errno
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

import policy as package
from policy.bundle import RigPolicy, load, load_model, tidy_directory
from policy.policy_folder import PolicyError
from policy.skintokens.skin_vae import SkinVAE
from policy.tokens.grammar import Grammar
from policy.tokens.skeleton_tokenizer import RigTokenError

TOLERANCE = {"rtol": 0, "atol": 2e-5}


@pytest.fixture
def policy(model, vae) -> RigPolicy:
    return RigPolicy(model, vae)


@pytest.fixture
def saved(policy, tmp_path):
    policy.save(tmp_path / "policy")
    return tmp_path / "policy"


def test_released_rig(policy, golden):
    points, normals = golden["points"], golden["normals"]
    rig = policy.decode_rig(
        golden["decode_ids"], points, normals, condition=golden["cond_latents"], strict=True
    )
    assert rig.parents.tolist() == golden["decode_parents"].tolist()
    torch.testing.assert_close(torch.from_numpy(rig.joints), golden["decode_joints"], **TOLERANCE)
    torch.testing.assert_close(torch.from_numpy(rig.weights), golden["decode_skin_pred"], **TOLERANCE)
    assert rig.cls == "articulation"
    # The condition is a function of the seed, here the recorded one.
    seeded = policy.decode_rig(
        golden["decode_ids"], points.numpy(), normals.numpy(), seed=int(golden["cond_seed"])
    )
    torch.testing.assert_close(torch.from_numpy(seeded.weights), golden["decode_skin_pred"], **TOLERANCE)
    other = policy.decode_rig(golden["decode_ids"], points, normals, seed=7)
    assert np.abs(other.weights - seeded.weights).max() > 1e-4


def test_released_rig_with_the_early_end(policy, golden):
    ids, cloud = golden["decode_release_ids"], (golden["points"], golden["normals"])
    rig = policy.decode_rig(ids, *cloud, condition=golden["cond_latents"])
    torch.testing.assert_close(torch.from_numpy(rig.weights), golden["decode_release_skin_pred"], **TOLERANCE)
    with pytest.raises(RigTokenError, match="truncated"):
        policy.decode_rig(ids, *cloud, strict=True)


def test_weights_at_query_points(policy, golden):
    cloud = (golden["points"], golden["normals"])
    rig = policy.decode_rig(
        golden["decode_ids"],
        *cloud,
        condition=golden["cond_latents"],
        query_points=cloud[0][50:90],
        query_normals=cloud[1][50:90],
    )
    torch.testing.assert_close(torch.from_numpy(rig.weights), golden["decode_skin_pred"][50:90], **TOLERANCE)
    with pytest.raises(ValueError, match="must be passed together"):
        policy.decode_rig(golden["decode_ids"], *cloud, query_points=cloud[0])


def test_round_trip(policy, saved, golden):
    again = package.load(saved)
    assert again.vocabulary == policy.vocabulary
    assert again.skin_vae.config == policy.skin_vae.config
    for before, after in [(policy.model, again.model), (policy.skin_vae, again.skin_vae)]:
        expected, found = before.state_dict(), after.state_dict()
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)
    condition = again.encode_mesh(golden["points"][None], golden["normals"][None])
    torch.testing.assert_close(condition, golden["mesh_cond"], **TOLERANCE)
    logits = again.next_token_logits(condition, golden["lm_prefix"][None])
    assert torch.equal(logits, policy.next_token_logits(condition, golden["lm_prefix"][None]))
    assert again.released_skeleton_tokenizer().allowed_next([]) == [257]


def test_the_directory_is_a_hugging_face_model(policy, saved):
    assert sorted(path.name for path in saved.iterdir() if path.is_dir()) == ["skin_vae"]
    model = AutoModelForCausalLM.from_pretrained(saved)
    assert type(model) is type(policy.model)
    assert not [name for name in model.state_dict() if "vae" in name]
    assert len(AutoTokenizer.from_pretrained(saved)) == policy.vocabulary.size


def test_saved_in_bfloat16(policy, tmp_path, golden):
    policy.save(tmp_path / "a")
    policy.save(tmp_path / "b", dtype=torch.bfloat16)
    sizes = [(tmp_path / name / "model.safetensors").stat().st_size for name in "ab"]
    assert sizes[1] < 0.55 * sizes[0]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "b").dtype == torch.bfloat16
    again = load(tmp_path / "b")  # the reference weights are exact in bf16
    assert again.model.dtype == torch.float32
    condition = again.encode_mesh(golden["points"][None], golden["normals"][None])
    torch.testing.assert_close(condition, golden["mesh_cond"], **TOLERANCE)


def test_saving_replaces_a_policy_whole_and_nothing_else(policy, saved, tmp_path):
    (saved / "stale.txt").write_text("old")
    policy.save(saved)
    assert not (saved / "stale.txt").exists()
    other = tmp_path / "photos"
    other.mkdir()
    (other / "cat.png").write_bytes(b"cat")
    with pytest.raises(PolicyError, match="photos: exists and is not a policy directory"):
        policy.save(other)
    assert [path.name for path in other.iterdir()] == ["cat.png"]


def test_a_failed_save_keeps_the_old_policy(policy, saved, monkeypatch):
    def fail(self, directory, dtype=None):
        raise OSError("disk full")

    monkeypatch.setattr(SkinVAE, "save", fail)
    before = sorted(path.name for path in saved.iterdir())
    with pytest.raises(OSError, match="disk full"):
        policy.save(saved)
    assert sorted(path.name for path in saved.iterdir()) == before
    assert [path.name for path in saved.parent.iterdir()] == ["policy"]  # nothing temporary left


def test_a_full_disk_is_an_os_error_that_names_the_directory(policy, tmp_path, monkeypatch):
    def fail(self, directory, dtype=None):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(SkinVAE, "save", fail)
    with pytest.raises(OSError, match="No space left on device") as caught:
        policy.save(tmp_path / "policy")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "policy"))
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_undone(tmp_path):
    target = tmp_path / "policy"
    (tmp_path / ".policy.new.abc").mkdir()  # it was being written
    (tmp_path / ".policy.mine").mkdir()  # the user's
    aside = tmp_path / ".policy.old.abc" / "policy"
    aside.mkdir(parents=True)
    (aside / "config.json").write_text("old")
    (tmp_path / ".policy_best.new.abc").mkdir()  # another directory's
    tidy_directory(target)
    assert (target / "config.json").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"policy", ".policy.mine", ".policy_best.new.abc"}
    aside.mkdir(parents=True)  # the new one was in place already
    (aside / "config.json").write_text("older")
    tidy_directory(target)
    assert (target / "config.json").read_text() == "old"
    assert {path.name for path in tmp_path.iterdir()} == {"policy", ".policy.mine", ".policy_best.new.abc"}


def test_a_trainers_checkpoint(policy, saved, tmp_path):
    checkpoint = tmp_path / "checkpoint-10"
    policy.model.save_pretrained(checkpoint)
    with pytest.raises(PolicyError, match=r"checkpoint-10: no skin_vae folder.*--skin-vae"):
        load(checkpoint)
    for place in (saved, saved / "skin_vae"):
        assert load(checkpoint, skin_vae=place).vocabulary == policy.vocabulary
    with pytest.raises(PolicyError, match="no skin VAE found; pass a policy or skin_vae directory"):
        load(checkpoint, skin_vae=tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]"])
def test_a_damaged_adapter_configuration_is_reported_by_name(tmp_path, content):
    path = tmp_path / "adapter_config.json"
    path.write_text(content)
    with pytest.raises(PolicyError, match=r"not a PEFT configuration .*; restore the file") as refusal:
        load_model(tmp_path)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_adapters_are_merged(policy, saved, fresh_model, tmp_path, golden):
    base = tmp_path / "base"
    RigPolicy(fresh_model, policy.skin_vae).save(base)
    reopened = load(base).model
    wrapped = get_peft_model(
        reopened, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "up_proj"], r=2)
    )
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    wrapped.peft_config["default"].base_model_name_or_path = str(base)
    wrapped.save_pretrained(tmp_path / "checkpoint-3")
    merged = load(tmp_path / "checkpoint-3")  # with the base's skin VAE
    condition = merged.encode_mesh(golden["points"][None], golden["normals"][None])
    ids = golden["lm_prefix"][None]
    with torch.no_grad():
        expected = wrapped(input_ids=ids, mesh_embeds=condition).logits
    torch.testing.assert_close(merged.next_token_logits(condition, ids), expected, **TOLERANCE)
    assert not torch.allclose(expected, fresh_model.next_token_logits(condition, ids), atol=1e-3)
    shutil.rmtree(base)
    with pytest.raises(PolicyError, match=r"base model .* is not a directory on this machine"):
        load(tmp_path / "checkpoint-3")


def test_unusable_directories(policy, saved, tmp_path):
    with pytest.raises(PolicyError, match="nowhere: no such directory"):
        load(tmp_path / "nowhere")
    (tmp_path / "policy.ckpt").write_bytes(b"PK")
    with pytest.raises(
        PolicyError, match=r"policy\.ckpt: this is a file; pass a policy directory \(see `python"
    ):
        load(tmp_path / "policy.ckpt")
    config = json.loads((saved / "config.json").read_text())
    (saved / "config.json").write_text(json.dumps({**config, "model_type": "llama"}))
    with pytest.raises(PolicyError, match="model of type 'llama'"):
        load(saved)
    (saved / "config.json").write_text("{")
    with pytest.raises(PolicyError, match=r"config\.json: not a JSON object"):
        load(saved)
    policy.save(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").unlink()
    with pytest.raises(PolicyError, match=r"no model\.safetensors"):
        load(tmp_path / "other")


def test_model_and_vae_must_belong_together(model, vae_config):
    with pytest.raises(PolicyError, match="2560 SkinTokens but its skin VAE has 4096 codes"):
        RigPolicy(model, SkinVAE(replace(vae_config, fsq_levels=(8, 8, 8, 8))))
    with pytest.raises(PolicyError, match="generates 4 SkinTokens per bone but its skin VAE has 6"):
        RigPolicy(model, SkinVAE(replace(vae_config, tokens_per_skin=6)))


def test_a_skin_vae_with_other_codes_of_the_same_size_is_refused(tmp_path, model, vae_config):
    first, other = SkinVAE(vae_config), SkinVAE(vae_config)
    RigPolicy(model, first).save(tmp_path / "one", torch.bfloat16)
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert config["skin_codes"] == first.code_digest()
    load(tmp_path / "one")  # in bfloat16, it has the digest of the float32 weights
    other.save(tmp_path / "other")
    shutil.rmtree(tmp_path / "one" / "skin_vae")
    with pytest.raises(
        PolicyError, match=r"one writes SkinTokens of another skin VAE than .*other, which has"
    ):
        load(tmp_path / "one", skin_vae=tmp_path / "other")
    # A decoder that was trained further decodes the same codes; an older policy does not say whose it writes.
    with torch.no_grad():
        first.model.decoder.proj_out.bias.add_(1.0)
    first.save(tmp_path / "tuned")
    load(tmp_path / "one", skin_vae=tmp_path / "tuned")
    (tmp_path / "one" / "config.json").write_text(json.dumps({**config, "skin_codes": None}))
    load(tmp_path / "one", skin_vae=tmp_path / "other")


@pytest.mark.parametrize("mode", ["fork", "released"])
def test_greedy_generation_of_the_released_code(policy, golden, mode):
    name = {"fork": "fork", "released": "release"}[mode]
    grammar = Grammar(policy.vocabulary, mode)
    condition = policy.encode_mesh(golden["points"][None], golden["normals"][None])
    for expected, given in [
        (golden[f"gen_{name}_skin_ids"], len(golden["gen_skeleton_tokens"])),
        (golden[f"gen_{name}_free_ids"], 2),
    ]:
        ids = expected[None, :given]
        state = grammar.advance(grammar.start(1), ids[:, 2:]) if given > 2 else grammar.start(1)
        while ids.shape[1] < len(expected):
            logits = policy.next_token_logits(condition, ids)[:, -1]
            token = logits.masked_fill(~grammar.allowed(state), -torch.inf).argmax(-1)
            ids, state = torch.cat([ids, token[:, None]], dim=1), grammar.step(state, token)
        assert ids[0].tolist() == expected.tolist()
