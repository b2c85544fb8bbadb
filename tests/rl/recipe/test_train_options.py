"""TRL's options: all are reviewed; nonsense, no-ops and missing packages are refused with the recipe."""

import dataclasses
from pathlib import Path

import pytest

from data.typed_recipe import RecipeError
from rl import train_grpo
from rl.recipe import load_recipe
from rl.recipe.train import FIXED, SET_ELSEWHERE, check_train
from rl.recipe.train_options import CHOICES, MAPPINGS, NEEDS, NO_EFFECT, OPTIMIZERS, RANGES, Range

BASE = Path(__file__).parents[3] / "recipes" / "base.yaml"

# Reviewed options that need no check beyond their type (true or false, or any text or finite number).
ANY_VALUE = {
    *("bf16", "fp16", "tf32", "use_cpu", "full_determinism", "gradient_checkpointing"),  # precision, machine
    *("activation_checkpointing", "skip_memory_metrics", "dataloader_pin_memory"),
    *("ddp_find_unused_parameters", "ddp_broadcast_buffers", "ddp_static_graph"),
    *("logging_first_step", "log_on_each_node", "disable_tqdm", "log_completions", "run_name"),  # logs
    *("mask_truncated_completions", "use_adaptive_entropy", "entropy_coef"),  # loss
}
# Checked by code of their own.
OWN_CHECK = {"optim", "report_to"}


def test_every_option_of_trl_is_reviewed_and_in_one_place():
    from trl import GRPOConfig

    checked = {*CHOICES, *RANGES, *NEEDS, *MAPPINGS}
    groups = [set(SET_ELSEWHERE), set(FIXED), set(NO_EFFECT), checked, ANY_VALUE, OWN_CHECK]
    for key in (field.name for field in dataclasses.fields(GRPOConfig)):
        assert sum(key in group for group in groups) == 1, key
    assert set().union(*groups) == {field.name for field in dataclasses.fields(GRPOConfig)}


def test_the_tables_agree_with_the_libraries():
    from transformers.trainer_utils import SchedulerType
    from transformers.training_args import OptimizerNames

    from rl.recipe.train_options import IN_BACKWARD

    assert {*OPTIMIZERS, *IN_BACKWARD} == {name.value for name in OptimizerNames}
    unusable = {"reduce_lr_on_plateau", "greedy"}  # need an evaluation during training
    assert {*CHOICES["lr_scheduler_type"], *unusable} == {name.value for name in SchedulerType}


def refusal(*pairs):
    """What the command line prints for overrides of `train`; it must be one sentence, with exit code 2."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(BASE, [f"train.{pair}" for pair in pairs])
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("key", [key for key in NO_EFFECT if key != "vllm_importance_sampling_cap"])
def test_options_without_effect_are_refused_with_the_reason(key):
    from trl import GRPOConfig

    default = {field.name: field.default for field in dataclasses.fields(GRPOConfig)}[key]
    for value in (not default, "nonsense", 17):
        with pytest.raises(RecipeError, match=f"'train.{key}' has no effect, remove it: .*") as caught:
            check_train({key: value})
        assert str(caught.value).endswith(NO_EFFECT[key])
    if default is not dataclasses.MISSING:
        assert check_train({key: default})[key] == default


@pytest.mark.parametrize("key", FIXED)
def test_fixed_options_are_refused_with_the_reason(key):
    with pytest.raises(RecipeError, match=rf"'train\.{key}' must be ") as caught:
        check_train({key: "nonsense"})
    assert FIXED[key][1] in str(caught.value)


@pytest.mark.parametrize("key", CHOICES)
def test_words_that_trl_would_not_know(key):
    assert refusal(f"{key}=nonsense").startswith(f"'train.{key}' must be one of ")
    assert refusal(f"{key}=no_such.word").endswith("not 'no_such.word'")


@pytest.mark.parametrize("key", RANGES)
def test_numbers_out_of_range(key):
    for value in (".nan", ".inf", "-1"):
        message = refusal(f"{key}={value}")
        assert message.startswith(f"'train.{key}' must be "), message
    lowest = RANGES[key].low
    if RANGES[key].low_open or lowest >= 1:
        assert f"'train.{key}' must be {RANGES[key]}, not 0" in refusal(f"{key}=0")


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        (
            ["loss_type=ppo"],
            "'train.loss_type' must be one of grpo, bnpo, dr_grpo, dapo, luspo, cispo, sapo, vespo",
        ),
        (
            ["save_strategy=no"],
            "not false; YAML reads an unquoted no or off as false: put the word in quotes",
        ),
        (["scale_rewards=false"], "'train.scale_rewards' must be one of group, batch, none, not false"),
        (["eval_strategy=no"], "'train.eval_strategy' must be 'no': 'eval.every' evaluates on held-out"),
        (["save_strategy=epoch"], "'train.save_strategy' must be one of steps, no, not 'epoch'"),
        (["lr_scheduler_type=greedy"], "'train.lr_scheduler_type' must be one of constant, "),
        (["push_to_hub=true"], "'train.push_to_hub' must be false: a run writes to 'output_dir' only"),
        (["cast_lm_head_to_fp32=true"], "'train.cast_lm_head_to_fp32' must be false: the model computes"),
        (
            ["sync_ref_model=true"],
            "'train.sync_ref_model' must be false: checkpoints hold no reference policy",
        ),
        (["deepspeed=zero3.json"], "'train.deepspeed' must be null: accelerate's configuration file"),
        (["parallelism_config={tp_size: 2}"], "'train.parallelism_config' must be null: accelerate's"),
        # null, and text where a section belongs
        (["bf16=null"], "'train.bf16' must not be null"),
        (["num_generations=null"], "'train.num_generations' must not be null"),
        (["seed=null"], "'train.seed' must be an integer, not null"),
        (["lr_scheduler_kwargs='{}'"], "'train.lr_scheduler_kwargs' must be a section of keys"),
        # ranges with ends of their own
        (["adam_beta2=1"], "'train.adam_beta2' must be at least 0 and below 1, not 1"),
        (
            ["top_entropy_quantile=1.5"],
            "'train.top_entropy_quantile' must be at least 0 and at most 1, not 1.5",
        ),
        (["seed=4294967296"], "'train.seed' must be at least 0 and below 4.29497e+09, not 4294967296"),
        (
            ["save_steps=2.5"],
            "'train.save_steps' must be above 0, and a whole number of steps or a share below 1",
        ),
        (["save_total_limit=0"], "'train.save_total_limit' must be at least 1, not 0"),
        # optimisers
        (["optim=adamw"], "'train.optim' must be one of adamw_torch, "),
        (
            ["optim=adamw_8bit"],
            "'train.optim' adamw_8bit needs the package bitsandbytes, which is not installed",
        ),
        (["optim=galore_adamw"], "needs the package galore_torch, which is not installed"),
        (["optim=schedule_free_adamw"], "needs the package schedulefree"),
        (["optim=stable_adamw"], "pip install torch-optimi"),
        (["optim=lomo"], "'train.optim' lomo changes weights while gradients are computed"),
        (
            ["optim_args=momentum=0.9"],
            "'train.optim_args' has no effect with 'train.optim' adamw_torch_fused",
        ),
        (
            ["optim=sgd", "optim_args=momentom=0.9"],
            "has 'momentom=0.9'; sgd takes a list such as 'momentum=…'",
        ),
        (
            ["optim=sgd", "optim_args=momentum=much"],
            "momentum must be a number that is not negative, not 'much'",
        ),
        (["optim=sgd", "adam_beta1=0.8"], "'train.adam_beta1' has no effect with 'train.optim' sgd"),
        # schedules
        (["warmup_steps=10"], "'train.warmup_steps' has no effect with 'train.lr_scheduler_type' constant"),
        (["lr_scheduler_kwargs={num_cycles: 2}"], "'train.lr_scheduler_kwargs' has no effect with"),
        (
            ["lr_scheduler_type=cosine", "lr_scheduler_kwargs={cycles: 2}"],
            "unknown key 'train.lr_scheduler_kwargs.cycles'; 'cosine' takes num_cycles",
        ),
        (["lr_scheduler_type=cosine_with_min_lr"], "cannot be used like this (One of min_lr or min_lr_rate"),
        (
            ["lr_scheduler_type=warmup_stable_decay"],
            "'train.lr_scheduler_type' warmup_stable_decay cannot be",
        ),
        (
            ["lr_scheduler_type=cosine_with_restarts", "lr_scheduler_kwargs={num_cycles: .inf}"],
            "'train.lr_scheduler_kwargs.num_cycles' must be a finite number, not .inf",
        ),
        # losses
        (["loss_type=sapo", "epsilon=0.3"], "'train.epsilon' has no effect with 'train.loss_type' sapo; set"),
        (
            ["sapo_temperature_pos=2"],
            "'train.sapo_temperature_pos' has no effect with 'train.loss_type' grpo",
        ),
        (["loss_type=cispo", "delta=4"], "'train.delta' has no effect with 'train.loss_type' cispo"),
        (["loss_type=luspo"], "'train.loss_type' luspo is a loss of whole sequences; set train.importance"),
        (["loss_type=cispo"], "'train.epsilon_high' itself, which must be at least 1, not null; set train."),
        (["loss_type=cispo", "epsilon_high=0.28"], "must be at least 1, not 0.28; set train.epsilon_high=5"),
        (
            ["loss_type=vespo", "importance_sampling_level=sequence"],
            "'train.importance_sampling_level' has no effect with 'train.loss_type' vespo",
        ),
        (
            ["loss_type=vespo", "epsilon_high=0.3"],
            "'train.epsilon_high' has no effect with 'train.loss_type'",
        ),
        (["delta=1.1"], "'train.delta' must be above 1 + epsilon = 1.2, the upper clip, not 1.1"),
        (
            ["beta=0", "use_bias_correction_kl=false"],
            "'train.use_bias_correction_kl' has no effect with 'train.beta'",
        ),
        (
            ["entropy_target=1"],
            "'train.entropy_target' has no effect with 'train.use_adaptive_entropy' false",
        ),
        (
            ["use_adaptive_entropy=true", "entropy_coef_min=2"],
            "'train.entropy_coef_min' 2 is above 'train.entropy_coef_max' 1.0",
        ),
        (
            ["multi_objective_aggregation=normalize_then_sum", "scale_rewards=batch"],
            "'train.scale_rewards' has no effect with 'train.multi_objective_aggregation' normalize_then_sum",
        ),
        # the rest
        (["fp16=true", "bf16=true"], "'train.fp16' and 'train.bf16' are both true"),
        (["steps_per_generation=2", "generation_batch_size=48"], "set the same thing; keep one of them"),
        (
            ["generation_batch_size=36", "num_generations=12"],
            "'train.generation_batch_size' 36 is not a multiple",
        ),
        (["dataloader_prefetch_factor=2"], "has no effect with 'train.dataloader_num_workers' 0; set"),
        (["num_completions_to_print=2"], "has no effect with 'train.log_completions' false"),
        (["project=rigs"], "'train.project' has no effect with 'train.report_to' none"),
        (
            ["gradient_checkpointing_kwargs={use_reentrant: true}"],
            "no effect with 'train.gradient_checkpointing'",
        ),
        (
            ["gradient_checkpointing=true", "gradient_checkpointing_kwargs={reentrant: true}"],
            "unknown key 'train.gradient_checkpointing_kwargs.reentrant'; torch takes use_reentrant",
        ),
        (
            ["gradient_checkpointing=true", "gradient_checkpointing_kwargs={use_reentrant: 3}"],
            "'train.gradient_checkpointing_kwargs.use_reentrant' must be true or false, not 3",
        ),
        (
            ["gradient_checkpointing=true", "activation_checkpointing=false"],
            "and they differ; keep one of them",
        ),
        (["report_to=[none, wandb]"], "'train.report_to' has none beside others"),
    ],
)
def test_values_that_do_nothing_or_cannot_work(pairs, message):
    assert message in refusal(*pairs)


@pytest.mark.parametrize(
    "given",
    [
        {"lr_scheduler_type": "cosine", "warmup_steps": 0.1, "lr_scheduler_kwargs": {"num_cycles": 0.5}},
        {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_lr_rate": 0.1}},
        {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 100}},
        {"lr_scheduler_type": "inverse_sqrt", "warmup_steps": 10},
        {"lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"power": 2.0}},
        {"optim": "sgd", "optim_args": "momentum=0.9, nesterov=true"},
        {"loss_type": "sapo", "sapo_temperature_pos": 2.0, "epsilon": 0.2},  # the default of a key is no lie
        {"loss_type": "luspo", "importance_sampling_level": "sequence"},
        {"loss_type": "cispo", "epsilon_high": 5.0},
        {"delta": 2.0},
        {"save_strategy": "no", "logging_steps": 0.1},
        {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}},
        {"dataloader_num_workers": 1, "dataloader_prefetch_factor": 2},
        {"learning_rate": 0.0, "max_grad_norm": 0.0, "beta": 0.0, "max_steps": 1},
        {"fp16": False, "bf16": True},
    ],
)
def test_values_that_work_are_accepted(given):
    checked = check_train(given)
    assert {key: checked[key] for key in given} == given


def test_ranges_are_words():
    assert str(Range(0, 1, low_open=True)) == "above 0 and at most 1"
    assert 0.5 in Range(0, step=True)
    assert 1.5 not in Range(0, step=True)


def test_the_command_ends_with_2_and_one_sentence(capsys):
    assert train_grpo.main([str(BASE), "train.loss_type=ppo"]) == 2
    assert capsys.readouterr().err.startswith("error: 'train.loss_type' must be one of grpo, ")
