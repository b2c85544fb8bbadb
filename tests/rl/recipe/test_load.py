"""The GRPO recipe: the shipped files' numbers, defaults, and every refusal."""

from pathlib import Path

import pytest

from data.typed_recipe import RecipeError, build, read_recipe, to_mapping
from rl import evaluate
from rl.recipe import Recipe, check_recipe, grpo_arguments, load_recipe, reward_settings

RECIPES = Path(__file__).parents[3] / "recipes"
GRPO_RECIPES = ("base", "quickstart", "grpo_800", "grpo_1400")


def load(name: str, *overrides: str) -> Recipe:
    return load_recipe(RECIPES / f"{name}.yaml", overrides)


# ------------------------------------------------------------------ what ships


@pytest.mark.parametrize("name", GRPO_RECIPES)
def test_shipped_recipes_load_and_survive_being_written(name):
    recipe = load(name)
    again = check_recipe(build(Recipe, to_mapping(recipe)))
    assert again == recipe


@pytest.mark.parametrize(("name", "steps"), [("grpo_1400", 1400), ("grpo_800", 800)])
def test_released_runs_have_the_papers_numbers(name, steps):
    recipe = load(name)
    assert list(recipe.rewards.weights.values()) == [5.0, 1.0, 1.0, 1.0]
    assert list(recipe.rewards.weights) == ["coverage", "containment", "sparsity", "smoothness"]
    train = recipe.train
    assert (train["max_steps"], train["num_generations"]) == (steps, 24)
    assert (train["learning_rate"], train["epsilon"], train["beta"]) == (1e-6, 0.2, 0.1)
    # One whole group of 24 a pass, 8 passes: 8 meshes a step on one GPU.
    assert train["per_device_train_batch_size"] == train["num_generations"] == 24
    assert train["gradient_accumulation_steps"] == 8
    assert (recipe.rewards.resolution, recipe.rewards.coverage.alpha) == (196, 0.05)
    assert (recipe.deformation.poses, recipe.deformation.max_angle_deg) == (5, 30.0)


def test_the_two_released_runs_differ_in_steps_and_place_alone():
    long, short = to_mapping(load("grpo_1400")), to_mapping(load("grpo_800"))
    short["train"]["max_steps"], short["output_dir"] = 1400, long["output_dir"]
    assert short == long


def test_quickstart_fits_the_issue():
    recipe = load("quickstart")
    assert recipe.data.meshes is None
    assert recipe.data.eval_count >= 16
    assert recipe.output_dir == "outputs/quickstart"
    assert recipe.workers.backend == "ray"
    assert recipe.train["report_to"] == "none"


def test_defaults_are_the_methods(tmp_path):
    empty = tmp_path / "empty.yaml"
    empty.write_text("")
    recipe = load_recipe(empty)
    assert grpo_arguments(recipe)["reward_weights"] == [5.0, 1.0, 1.0, 1.0]
    settings = reward_settings(recipe)
    assert (settings.resolution, settings.samples_per_bone, settings.threshold) == (196, 10, 0.1)
    assert (settings.max_influences, settings.smoothness_scale, settings.reduce) == (4, 1.0, "max")
    train = recipe.train
    assert (train["num_generations"], train["learning_rate"], train["epsilon"], train["beta"]) == (
        24,
        1e-6,
        0.2,
        0.1,
    )
    assert train["loss_type"] == "grpo"
    assert recipe.policy.grammar == "strict"


def test_overrides_reach_trl_and_the_rewards():
    recipe = load("quickstart", "train.max_steps=10", "rewards.containment.weight=0", "output_dir=here")
    arguments = grpo_arguments(recipe)
    assert arguments["max_steps"] == 10
    assert arguments["reward_weights"] == [5.0, 0.0, 1.0, 1.0]
    assert Path(arguments["output_dir"]).parent == Path("here")
    # Sampling is from the whole distribution, whatever the library's defaults.
    assert (arguments["top_p"], arguments["top_k"], arguments["repetition_penalty"]) == (1.0, 0, 1.0)


# ------------------------------------------------------------------ refusals


REFUSALS = [
    # keys and types
    ("train.max_stepz=3", ["train.max_stepz", "train.max_steps"]),
    ("rewards.coverge.weight=3", ["rewards.coverge", "rewards.coverage"]),
    ("train.max_steps=many", ["train.max_steps", "many"]),
    ("data.train_count=1.5", ["data.train_count", "1.5"]),
    ("policy.grammar=loose", ["policy.grammar", "strict"]),
    # sampling from another distribution than the trained one
    ("train.top_p=0.9", ["train.top_p", "one distribution"]),
    ("train.top_k=50", ["train.top_k", "one distribution"]),
    ("train.min_p=0.1", ["train.min_p", "one distribution"]),
    ("train.repetition_penalty=1.2", ["train.repetition_penalty", "one distribution"]),
    ("train.temperature=0", ["train.temperature", "above 0"]),
    # values that would be silently ignored
    ("train.use_vllm=true", ["train.use_vllm", "sampler"]),
    ("train.vllm_mode=server", ["train.vllm_mode", "sampler"]),
    ("train.generation_kwargs={top_k: 3}", ["train.generation_kwargs", "sampler"]),
    ("train.use_liger_kernel=true", ["train.use_liger_kernel"]),
    ("train.pad_to_multiple_of=8", ["train.pad_to_multiple_of"]),
    ("train.eval_strategy=steps", ["train.eval_strategy", "'eval.every'"]),
    ("train.remove_unused_columns=true", ["train.remove_unused_columns"]),
    # keys that another key sets
    ("train.output_dir=here", ["train.output_dir", "output_dir"]),
    ("train.reward_weights=[1, 1, 1, 1]", ["train.reward_weights", "rewards.<name>.weight"]),
    ("train.resume_from_checkpoint=here", ["train.resume_from_checkpoint", "'resume'"]),
    # values out of range
    ("train.max_steps=0", ["train.max_steps", "above 0"]),
    ("train.max_steps=-1", ["train.max_steps", "above 0"]),
    ("train.num_train_epochs=2.0", ["train.num_train_epochs", "train.max_steps"]),
    ("train.shuffle_dataset=true", ["train.shuffle_dataset", "resumed"]),
    ("train.num_generations=1", ["train.num_generations", "at least 2"]),
    ("train.num_generations=10007", ["train.num_generations", "10007", "rollouts of a step"]),
    ("train.report_to=telegraph", ["train.report_to", "telegraph"]),
    ("data.train_count=0", ["data.train_count"]),
    ("data.points=-5", ["data.points"]),
    ("data.max_turn_deg=200", ["data.max_turn_deg", "180"]),
    ("data.kinds=[unicorn]", ["data.kinds", "unicorn", "quadruped"]),
    ("rig.candidates=0", ["rig.candidates"]),
    ("rig.temperature=-1", ["rig.temperature"]),
    ("rig.seed=-1", ["'rig.seed' must not be negative, not -1"]),
    ("data.seed=-2", ["'data.seed' must not be negative, not -2"]),
    ("eval.seed=-3", ["'eval.seed' must not be negative, not -3"]),
    ("deformation.poses=nowhere.npz", ["deformation.poses", "nowhere.npz"]),
    ("rewards.bone_influence.weight=-1", ["rewards.bone_influence.weight"]),
    ("eval.samples=0", ["eval.samples"]),
    ("eval.temperature=-1", ["eval.temperature"]),
    ("workers.count=0", ["workers.count"]),
    ("workers.retries=-1", ["workers.retries"]),
    ("workers.max_restarts=-1", ["workers.max_restarts"]),
    ("workers.min_deadline_s=0", ["workers.min_deadline_s"]),
    ("workers.startup_timeout_s=0", ["workers.startup_timeout_s"]),
    ("data.max_quarantined=-0.5", ["data.max_quarantined"]),
    ("rollout.batch_size=0", ["rollout.batch_size"]),
    ("policy.lora={rank: 0}", ["policy.lora.rank"]),
    ("policy.lora={target_modules: []}", ["policy.lora.target_modules"]),
    ("rewards.resolution=0", ["rewards.resolution"]),
    ("rewards.smoothness.weight=-1", ["'rewards.smoothness.weight' must not be negative, not -1.0"]),
    ("rewards.smoothness.weight=.nan", ["'rewards.smoothness.weight' must be a finite number, not .nan"]),
    ("rewards.sparsity.threshold=2", ["'rewards.sparsity.threshold' is 2.0; it must be between 0 and 1"]),
    ("rewards.coverage.alpha=-1", ["'rewards.coverage.alpha' is -1.0; it must be at least 0"]),
    ("rewards.coverage.alpha=.inf", ["'rewards.coverage.alpha' must be a finite number, not .inf"]),
    ("rewards.coverage.alpha=.nan", ["'rewards.coverage.alpha' must be a finite number, not .nan"]),
    ("rewards.smoothness.scale=-2", ["'rewards.smoothness.scale' is -2.0; it must be at least 0"]),
    ("rewards.max_scoring_vertices=1", ["'rewards.max_scoring_vertices' is 1; it must be at least 2"]),
    ("rewards.joint_count_prior.factor=1", ["'rewards.joint_count_prior.factor' is 1.0; it must be above 1"]),
    ("deformation.poses=0", ["deformation.poses"]),
    ("deformation.wide_poses=-1", ["'deformation.wide_poses' is -1; it must be at least 0"]),
    ("deformation.wide_angle_deg=270", ["'deformation.wide_angle_deg' is 270.0; it must be between 0 and"]),
    ("rewards.custom=my_rewards", ["'rewards.custom' has 'my_rewards', which names no function; write"]),
    ("rewards.custom=my-rewards:f", ["'rewards.custom' has 'my-rewards:f'", "package.module:function"]),
    ("rewards.custom=[3]", ["'rewards.custom[0]' must be text, not 3"]),
    ("rewards.custom={my:f: -1}", ["'rewards.custom': the weight of my:f must not be negative, not -1.0"]),
    ("rewards.custom=my:coverage", ["my:coverage, but a reward of this project has that name"]),
    ("rewards.custom=[a.b:f, a.b:f]", ["'rewards.custom' has a.b:f twice; remove one"]),
    ("rewards.custom=[a.b:f, c:f]", ["'rewards.custom' has c:f, but a.b:f has that name too; give"]),
    ("rewards.custom=nowhere_at_all:f", ["'rewards.custom': the reward nowhere_at_all:f cannot be imported"]),
    ("rewards.weight_locality.weight=-1", ["'rewards.weight_locality.weight' must not be negative"]),
    ("deformation.max_angle_deg=270", ["'deformation.max_angle_deg' is 270.0; it must be between 0 and 180"]),
]


@pytest.mark.parametrize(("override", "words"), REFUSALS, ids=[override for override, _ in REFUSALS])
def test_refusals_name_the_key_and_the_fix_in_one_sentence(override, words):
    with pytest.raises(RecipeError) as refusal:
        load("quickstart", override)
    message = str(refusal.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("override", "problem"),
    [
        (
            "train.importance_sampling_level=sequence",
            "'train.importance_sampling_level' is sequence, and one",
        ),
        ("train.off_policy_mask_threshold=0.5", "'train.off_policy_mask_threshold' masks whole rigs by the"),
        ("train.log_completions=true", "'train.log_completions' writes tables with one advantage per rig"),
        ("data.skeleton=given", "'data.skeleton' is given, so that only SkinTokens are trained"),
    ],
)
def test_what_phase_credit_cannot_be_combined_with(override, problem):
    assert load("base", "rewards.credit=phase").rewards.credit == "phase"
    load("base", override)
    with pytest.raises(RecipeError) as refusal:
        load("base", "rewards.credit=phase", override)
    message = str(refusal.value)
    assert message.startswith(f"'rewards.credit' is phase, but {problem}"), message
    assert message.endswith("; remove one of them")


def test_phase_credit_needs_a_reward_in_either_phase(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "rewards_of_both.py").write_text("def own(rig):\n    return 1.0\n")
    no_skin = ["rewards.credit=phase", "rewards.sparsity.weight=0", "rewards.smoothness.weight=0"]
    assert load("base", *no_skin[:2]).rewards.weights["sparsity"] == 0
    with pytest.raises(RecipeError, match="no reward of the skin has a weight above 0, so that nothing"):
        load("base", *no_skin)
    assert load("base", *no_skin, "rewards.weight_locality.weight=1")
    assert load("base", *no_skin, "rewards.custom=rewards_of_both:own")
    no_skeleton = ["rewards.credit=phase", "rewards.coverage.weight=0", "rewards.containment.weight=0"]
    with pytest.raises(
        RecipeError, match=r"no reward of the skeleton .*; set one of rewards\.coverage\.weight,"
    ):
        load("base", *no_skeleton)


def test_groups_have_to_fill_the_rollouts_of_all_processes(monkeypatch):
    # 3 rows x 2 processes x 4 passes = 24 rollouts: one group of 24, though neither process has a whole one.
    shape = ("train.per_device_train_batch_size=3", "train.gradient_accumulation_steps=4")
    with pytest.raises(RecipeError, match="does not divide the 12 rollouts of a step"):
        load("base", *shape)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert load("base", *shape).train["num_generations"] == 24
    with pytest.raises(RecipeError, match=r"does not divide the 32 rollouts of a step \(generation_batch"):
        load("base", "train.generation_batch_size=32")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "workers.decoder_device=gpu",
            "'workers.decoder_device' 'gpu' is not a device; use cpu, cuda or cuda:N",
        ),
        ("workers.decoder_device=cuda:first", "is not a device"),
        ("ray.address=no-port", "'ray.address' 'no-port' is not an address; use auto, HOST:PORT"),
        ("ray.address=ray://head:10001", "is not an address"),
        ("ray.namespace=' '", "'ray.namespace' is empty"),
        ("output_dir=", "'output_dir' must be text, not null"),
        ("output_dir=$NO_SUCH_VARIABLE/run", "the environment variable NO_SUCH_VARIABLE in"),
        ("policy.path=~no-such-user-here/policy", "'policy.path': '~no-such-user-here/policy' names no home"),
        ("train.save_strategy=no", "YAML reads an unquoted no or off as false"),
        ("data.seed=010", "YAML reads 010 as 8 (octal)"),
        ("eval.temperature=.inf", "'eval.temperature' must be a finite number, not .inf"),
        ("deformation.max_angle_deg=.nan", "'deformation.max_angle_deg' must be a finite number, not .nan"),
        ("train_guard.stop_after_minutes=.inf", "'train_guard.stop_after_minutes' must be a finite number"),
    ],
)
def test_places_devices_and_numbers_that_cannot_be(override, message):
    with pytest.raises(RecipeError) as refusal:
        load("quickstart", override)
    assert message in str(refusal.value)


def test_addresses_and_devices_that_can_be():
    for address in ("auto", "10.0.0.7:6379", "head.cluster:6379", "[fe80::1]:6379"):
        assert load("base", f"ray.address='{address}'").ray.address == address
    assert load("base", "workers.decoder_device=cuda:1").workers.decoder_device == "cuda:1"


def test_an_output_directory_that_is_a_file_or_in_one(tmp_path, monkeypatch):
    (tmp_path / "results").write_text("")
    for place in ("results", "results/run"):
        with pytest.raises(
            RecipeError, match=r"'output_dir' .*: .*results is a file; choose another directory"
        ):
            load("base", f"output_dir={tmp_path / place}")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load("base", "output_dir=~/run").output_dir == str(tmp_path / "run")
    assert load("base", "output_dir=$HOME/run").output_dir == str(tmp_path / "run")


def test_a_fixed_key_may_be_set_to_its_only_value():
    assert load("base", "train.top_p=1.0", "train.use_vllm=false").train["top_p"] == 1.0


# ------------------------------------------------------------------ command line


def test_print_recipe_shows_a_recipe_that_loads_as_the_same(tmp_path, capsys):
    assert evaluate.main([str(RECIPES / "grpo_800.yaml"), "--print-recipe", "train.max_steps=7"]) == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert load_recipe(printed) == load("grpo_800", "train.max_steps=7")
    # Nothing is left to the libraries' defaults that the paper gives.
    shown = read_recipe(printed)["train"]
    assert {"learning_rate", "num_generations", "beta", "epsilon", "max_steps"} <= set(shown)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["recipes/nowhere.yaml"], ["nowhere.yaml", "does not exist"]),
        ([str(RECIPES / "base.yaml"), "train.max_step=3"], ["train.max_step", "train.max_steps"]),
        ([str(RECIPES / "base.yaml"), "policy.path=/nowhere"], ["policy.path", "/nowhere"]),
    ],
)
def test_user_errors_end_with_2_and_one_sentence(arguments, words, capsys):
    assert evaluate.main(arguments) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert all(word in shown.err for word in words), shown.err
    assert len(shown.err.strip().splitlines()) == 1
    assert shown.err.startswith("error: ")
