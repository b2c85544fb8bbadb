"""Evaluation during training: settings, the choice of the best policy, and what is refused."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import rl.during_training
from data.typed_recipe import RecipeError
from policy.bundle import load
from rl.best_policy import BestPolicy, read_best
from rl.evaluation import evaluate
from rl.random_states import same_random_states
from tests.rl import tiny
from tests.rl.commands import metrics

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

QUICK = {
    **{"eval.before_and_after": False, "train.max_completion_length": 60, "train.save_steps": 2},
    **{"data.train_count": 2, "data.eval_count": 2},
}
EVERY_STEP = {**QUICK, "eval.every": 1, "train.max_steps": 1}


def evaluated_steps(output: Path) -> list[int]:
    return [line["step"] for line in metrics(output) if "eval/total" in line]


def random_states() -> list[object]:
    numpy = np.random.get_state()  # noqa: NPY002
    return [random.getstate(), numpy[1].tolist(), numpy[2], torch.get_rng_state().tolist()]


def test_random_states_are_restored_also_after_an_error():
    before = random_states()

    def draw() -> None:
        with same_random_states():
            random.random()
            np.random.rand()  # noqa: NPY002
            torch.rand(1)
            assert random_states() != before
            raise KeyError

    with pytest.raises(KeyError):
        draw()
    assert random_states() == before


@pytest.mark.parametrize(
    "changes",
    [{}, {"policy.lora": {"rank": 2}, "policy.train_mesh_encoder": True}],
    ids=["full", "lora and encoder"],
)
def test_the_policy_kept_after_the_last_step_is_the_exported_one(here, tmp_path, monkeypatch, changes):
    """With adapters it is a merged copy; without, the model itself."""
    monkeypatch.setattr(BestPolicy, "is_better_than", lambda self, other: True)
    assert here({**EVERY_STEP, **changes, "train.learning_rate": 0.01}) == 0
    kept, exported = (load(tmp_path / "run" / name) for name in ("policy_best", "policy"))
    start = load(tmp_path / "run" / "policy_best").model.state_dict()
    others = exported.model.state_dict()
    assert start.keys() == others.keys()
    assert all(torch.equal(start[name], others[name]) for name in others)
    before = tiny.make_policy().model.state_dict()
    assert not all(torch.equal(start[name], before[name]) for name in before)
    vae = exported.skin_vae.state_dict()
    assert all(torch.equal(value, vae[name]) for name, value in kept.skin_vae.state_dict().items())


def test_a_start_without_a_checkpoint_is_forgotten(here, tmp_path, monkeypatch):
    def interrupted(*arguments):
        if arguments[5] == "step 1":
            raise KeyboardInterrupt
        return evaluate(*arguments)

    monkeypatch.setattr(rl.during_training, "evaluate", interrupted)
    assert here(EVERY_STEP) == 130
    assert evaluated_steps(tmp_path / "run") == [0]
    monkeypatch.undo()
    assert here(EVERY_STEP) == 0
    assert evaluated_steps(tmp_path / "run") == [0, 1]


def test_an_evaluation_counts_as_made_once_its_policy_is_kept(here, tmp_path, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(rl.during_training.DuringTraining, "_keep", killed)
    assert here(EVERY_STEP) == 130
    assert evaluated_steps(tmp_path / "run") == []


def test_other_settings_start_a_new_choice(make_recipe, tmp_path, capsys):
    recipe = make_recipe({"eval.every": 1})
    folder = tmp_path / "run" / "policy_best"
    folder.mkdir(parents=True)
    own = rl.best_policy.settings_of(recipe)
    record = {"step": 3, "by": "total", "value": 1.5, "higher_is_better": True, "mean": {}, "settings": own}
    (folder / "best.json").write_text(json.dumps(record))
    assert read_best(tmp_path / "run", recipe).step == 3
    assert read_best(tmp_path / "run", make_recipe({"eval.every": 7, "eval.compare": ["a"]})).step == 3
    capsys.readouterr()
    for changes in ({"eval.best_by": "valid"}, {"eval.seed": 7}, {"eval.every_samples": 3}):
        assert read_best(tmp_path / "run", make_recipe(changes)) is None
        assert "was chosen by 'total' under other evaluation settings" in capsys.readouterr().err
    (folder / "best.json").write_text('{"step": 3}')
    assert read_best(tmp_path / "run", recipe) is None
    assert "best.json cannot be read (" in capsys.readouterr().err
    shutil.rmtree(folder)
    assert read_best(tmp_path / "run", recipe) is None
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("value", "other", "higher", "expected"),
    [
        (2.0, 1.0, True, True),
        (1.0, 1.0, True, False),  # the earlier one stays
        (0.5, 1.0, True, False),
        (0.5, 1.0, False, True),
        (1.0, 1.0, False, False),
        (float("nan"), 1.0, True, False),
    ],
)
def test_better_by_the_measures_direction(value, other, higher, expected):
    now, before = (BestPolicy(step, "m", v, higher, {}, {}) for step, v in ((2, value), (1, other)))
    assert now.is_better_than(before) == expected
    assert now.is_better_than(None)


def test_the_direction_comes_from_the_measure(make_recipe):
    from rl.best_policy import candidate
    from rl.evaluation_results import Evaluation

    evaluation = Evaluation("p", 1, 0, {}, {"total": 4.0, "unirig_j2j_valid": 0.1}, {}, {})
    assert candidate(evaluation, 1, make_recipe()).higher_is_better
    by = make_recipe({"eval.best_by": "unirig_j2j_valid"})
    assert not candidate(evaluation, 1, by).higher_is_better
    assert candidate(evaluation, 1, make_recipe({"eval.best_by": "skin_iou_valid"})) is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("totl", "'eval.best_by': no measure is named 'totl'; the nearest is 'total'"),
        ("joints", "'eval.best_by' is joints, of which neither more nor less is better"),
        ("valid_valid", "no measure is named 'valid_valid'"),
        ("bone_influence", "no measure is named 'bone_influence'"),  # a guard that is disabled
    ],
)
def test_measures_that_cannot_choose_are_refused(make_recipe, name, message):
    with pytest.raises(RecipeError) as caught:
        make_recipe({"eval.best_by": name})
    assert message in str(caught.value)
    assert make_recipe({"eval.best_by": "skin_iou_valid"})
    guarded = {"eval.best_by": "bone_influence", "rewards.bone_influence": {"weight": 1.0}}
    assert make_recipe(guarded)


def test_a_measure_without_ground_truth_is_refused_at_the_start(here, tmp_path, capsys):
    import trimesh

    trimesh.creation.icosphere(2).export(tmp_path / "ball.obj")
    bare = {**EVERY_STEP, "eval.best_by": "skin_iou", "data.eval_meshes": str(tmp_path / "ball.obj")}
    assert here(bare) == 2
    assert "no held-out mesh has a rig to compare with" in capsys.readouterr().err.splitlines()[-1]
    assert here({**EVERY_STEP, "eval.best_by": "skin_iou", "eval.metrics": False}) == 2
    assert "'eval.metrics' is false; set it to true" in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run" / "metrics.jsonl").exists()
