"""What a run trains, exports and logs: encoder, adapters, precision, metrics of every step."""

import math
from pathlib import Path

import pytest
import torch

from policy.bundle import RigPolicy, load, load_model
from policy.tokenrig.modeling import TokenRigForCausalLM
from rl.mesh_bank import MeshBank
from tests.rl import tiny
from tests.rl.training_runs import Run, changed, weights

WORDS = tiny.VOCABULARY

# Deprecations of transformers, which TRL has to fix.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


# ------------------------------------------------------------------ what trains


def encoder_names(names: set[str]) -> set[str]:
    return {name for name in names if name.startswith(("mesh_encoder", "output_proj"))}


def test_a_frozen_encoder_neither_trains_nor_runs_again(make_recipe, monkeypatch):
    run = Run(make_recipe({"train.max_steps": 3}))
    encoded: list[int] = []
    clouds = MeshBank.clouds

    def counting(bank, index, device):
        encoded.extend(index.tolist())
        return clouds(bank, index, device)

    monkeypatch.setattr(MeshBank, "clouds", counting)
    trained = run.optimise()
    moved = changed(run.before, trained)
    assert not encoder_names(moved)
    assert "transformer.model.layers.0.self_attn.q_proj.weight" in moved
    for name, parameter in trained.named_parameters():  # nor does the optimiser keep anything for it
        assert parameter.requires_grad is not bool(encoder_names({name}))
    assert sorted(encoded) == sorted(set(encoded))  # each mesh once in three steps


def test_a_trained_encoder_gets_gradients_and_its_embeddings_are_not_kept(make_recipe):
    run = Run(make_recipe({"policy.train_mesh_encoder": True, "train.max_steps": 1}))
    trained = run.optimise()
    moved = encoder_names(changed(run.before, trained))
    assert any(name.startswith("mesh_encoder") for name in moved)
    assert any(name.startswith("output_proj") for name in moved)
    assert not run.bank._embeds


@pytest.mark.parametrize("what", [{"policy.train_mesh_encoder": True}, {"policy.lora": {"rank": 2}}])
def test_gradient_checkpointing_changes_memory_alone(make_recipe, what):
    """Also where gradients go through the language model's input, or its first weights are frozen."""
    moved = []
    for checkpointing in (False, True):
        changes = {"train.gradient_checkpointing": checkpointing, **what}
        run = Run(make_recipe({"train.max_steps": 1, "resume": False, **changes}))
        moved.append(weights(run.optimise()))
    for name, tensor in moved[0].items():
        torch.testing.assert_close(tensor, moved[1][name], atol=1e-6, rtol=1e-5)


def test_lora_trains_adapters_alone_and_exports_a_merged_policy(make_recipe, tmp_path):
    run = Run(make_recipe({"policy.lora": {"rank": 4, "alpha": 8}, "train.max_steps": 3}))
    trainer = run.trainer()
    trainable = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert trainable
    assert all("lora_" in name for name in trainable)
    assert all(part in " ".join(trainable) for part in ("q_proj", "k_proj", "v_proj", "o_proj"))
    trainer.train()
    # The reference is the model without its adapters: no distance at first, some later.
    kl = [line["kl"] for line in run.metrics()]
    assert kl[0] == pytest.approx(0, abs=1e-7)
    assert kl[-1] > 1e-7

    merged = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False).merge_and_unload()
    assert type(merged) is TokenRigForCausalLM
    moved = changed(run.before, merged)
    assert moved
    assert all(name.endswith("_proj.weight") and ".self_attn." in name for name in moved)
    exported = RigPolicy(merged.eval(), run.policy.skin_vae)
    exported.save(tmp_path / "exported")
    again = load(tmp_path / "exported")
    for name, tensor in weights(merged).items():
        torch.testing.assert_close(weights(again.model)[name], tensor)
    # The checkpoint holds the adapters; loading merges them into the policy that the run began with.
    from_checkpoint = load_model(tmp_path / "run" / "checkpoints" / "checkpoint-3")
    for name, tensor in weights(from_checkpoint).items():
        torch.testing.assert_close(tensor, weights(merged)[name])


def test_bf16_trains_on_a_cpu(make_recipe):
    run = Run(make_recipe({"train.bf16": True, "train.use_cpu": True, "train.max_steps": 2}))
    trained = run.optimise()
    assert changed(run.before, trained)
    assert {p.dtype for p in trained.parameters()} == {torch.float32}  # mixed precision: the weights stay
    for line in run.metrics():
        assert math.isfinite(line["loss"])
        # The trained distribution is the sampled one, up to rounding to eight bits.
        assert abs(line["kl"]) < 1e-3
    # The mixed-precision wrapper is gone: the model evaluated after training is the one that was saved.
    prompt = {"input_ids": torch.tensor([[WORDS.bos, WORDS.class_none]])}
    embeds = torch.zeros(1, tiny.MESH_TOKENS, 32)
    plain = load_model(run.recipe.policy.path)
    plain.load_state_dict(trained.state_dict())
    with torch.no_grad():
        assert torch.equal(
            trained.eval()(**prompt, mesh_embeds=embeds).logits,
            plain.eval()(**prompt, mesh_embeds=embeds).logits,
        )


# ------------------------------------------------------------------ metrics


ISSUE_METRICS = [
    "frac_reward_zero_std",
    "kl",
    "entropy",
    "clip_ratio/low_mean",
    "clip_ratio/high_mean",
    "clip_ratio/region_mean",
    "reward",
    "reward_std",
    *(
        f"rewards/{name}/{part}"
        for name in ("coverage", "containment", "sparsity", "smoothness")
        for part in ("mean", "std")
    ),
    "rig/valid",
    "rig/joints",
    "rig/unscored",
    "seconds/rollout",
    "seconds/decode",
    "seconds/score",
    "seconds/train",
    "seconds/wait_for_rewards",
    "tokens_per_second",
    "completions/mean_length",
    "completions/clipped_ratio",
    "grad_norm",
    "learning_rate",
    "loss",
]


@pytest.fixture(scope="module")
def three_steps(policy_path, tmp_path_factory) -> Run:
    recipe = tiny.make_recipe(policy_path, tmp_path_factory.mktemp("run"), {"train.max_steps": 3})
    run = Run(recipe)
    run.optimise()
    return run


def test_every_step_logs_every_metric(three_steps):
    lines = three_steps.metrics()
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert not [name for name in ISSUE_METRICS if not isinstance(line.get(name), int | float)]


def test_metrics_mean_what_they_say(three_steps):
    for line in three_steps.metrics():
        rewards = {
            name: line[f"rewards/{name}/mean"]
            for name in ("coverage", "containment", "sparsity", "smoothness")
        }
        assert all(0 <= value <= 1 for value in rewards.values())
        total = 5 * rewards["coverage"] + sum(rewards.values()) - rewards["coverage"]
        assert line["reward"] == pytest.approx(total, abs=1e-5)
        # Strict grammar: what the limit does not cut off is valid.
        assert line["rig/valid"] == pytest.approx(1 - line["completions/clipped_ratio"])
        assert line["rig/unscored"] == 0
        parts = line["seconds/rollout"] + line["seconds/wait_for_rewards"] + line["seconds/train"]
        assert parts == pytest.approx(line["step_time"])
        assert line["tokens_per_second"] == pytest.approx(
            8 * line["completions/mean_length"] / line["seconds/rollout"], rel=1e-4
        )


def test_the_reference_is_the_initial_policy(three_steps):
    kl = [line["kl"] for line in three_steps.metrics()]
    assert kl[0] == pytest.approx(0, abs=1e-7)
    assert kl[2] > 1e-6


def test_steps_that_reuse_rollouts_are_logged_too(make_recipe):
    """Two updates from each batch: the second one has ratios to clip, and no rewards of its own."""
    run = Run(make_recipe({"train.num_iterations": 2, "train.max_steps": 4, "train.learning_rate": 0.03}))
    run.optimise()
    lines = run.metrics()
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert ["reward" in line for line in lines] == [True, False, True, False]
    for line in lines:
        assert {"kl", "entropy", "loss", "seconds/train", "clip_ratio/region_mean"} <= set(line)
    assert lines[1]["clip_ratio/region_mean"] > lines[0]["clip_ratio/region_mean"] == 0


def test_accumulated_batches_are_one_step(make_recipe):
    """2 x 4 rows accumulated are the same 8 rollouts, rewards and update as 8 rows at once."""
    steps = []
    for rows, passes in ((8, 1), (4, 2)):
        changes = {"train.per_device_train_batch_size": rows, "train.gradient_accumulation_steps": passes}
        run = Run(make_recipe({"train.max_steps": 1, "train.loss_type": "dapo", **changes}))
        moved = weights(run.optimise())
        steps.append((moved, run.metrics()[0]))
    assert steps[0][1]["reward"] == pytest.approx(steps[1][1]["reward"], abs=1e-6)
    for name, tensor in steps[0][0].items():
        torch.testing.assert_close(tensor, steps[1][0][name], atol=1e-5, rtol=1e-4)


def test_guards_and_gdpo_reach_the_trainer(make_recipe):
    """An opt-in reward with its own weight, and rewards normalised one by one before summing."""
    changes = {
        "rewards.bone_influence.weight": 2.0,
        "train.multi_objective_aggregation": "normalize_then_sum",
        "train.max_steps": 1,
        "train.log_completions": True,
    }
    run = Run(make_recipe(changes))
    assert changed(run.before, run.optimise())
    (line,) = run.metrics()
    names = ("containment", "sparsity", "smoothness")
    total = 5 * line["rewards/coverage/mean"] + 2 * line["rewards/bone_influence/mean"]
    assert line["reward"] == pytest.approx(
        total + sum(line[f"rewards/{name}/mean"] for name in names), abs=1e-5
    )
    assert list(Path(run.args.output_dir).glob("completions/*.parquet"))


def test_runs_repeat(three_steps, policy_path, tmp_path):
    again = Run(tiny.make_recipe(policy_path, tmp_path / "again", {"train.max_steps": 3}))
    again.optimise()
    assert stable(again.metrics()) == stable(three_steps.metrics())
    other = Run(tiny.make_recipe(policy_path, tmp_path / "other", {"train.max_steps": 3, "train.seed": 1}))
    other.optimise()
    assert stable(other.metrics()) != stable(three_steps.metrics())


def stable(lines: list[dict[str, float | None]]) -> list[dict[str, float | None]]:
    """Metrics without timings."""
    return [
        {key: value for key, value in line.items() if "second" not in key and "time" not in key}
        for line in lines
    ]
