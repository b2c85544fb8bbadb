"""A user's own reward in a run: the documentation's example, its logs, and what ends the run."""

import json
import re
from pathlib import Path

import pytest

from rl.recipe import load_recipe
from tests.docs.pages import ROOT, code_blocks, section

EXAMPLE = section((ROOT / "docs/rewards.md").read_text("utf-8"), "## Your own reward")
BASE = ROOT / "recipes" / "base.yaml"

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with the documentation's module, under a name of its own for every test."""
    (source,) = code_blocks(EXAMPLE, "python")
    (tmp_path / f"{module_of(tmp_path)}.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def module_of(folder: Path) -> str:
    return re.sub(r"\W", "_", f"my_rewards_{folder.name}")


def test_the_commands_of_the_documentation_name_its_functions(folder):
    (commands,) = code_blocks(EXAMPLE, "bash")
    overrides = [
        text.strip().strip("'").replace("my_rewards", module_of(folder))
        for text in re.findall(r"('?rewards\.custom=.*)$", commands, flags=re.MULTILINE)
    ]
    weights = [load_recipe(BASE, [override]).rewards.weights for override in overrides]
    assert [
        {name: weight for name, weight in each.items() if name in ("joints_apart", "rests_on_the_ground")}
        for each in weights
    ] == [
        {"joints_apart": 1.0},
        {"joints_apart": 1.0, "rests_on_the_ground": 1.0},
        {"joints_apart": 0.5, "rests_on_the_ground": 2.0},
    ]
    assert list(weights[2])[-2:] == ["joints_apart", "rests_on_the_ground"]


def test_it_is_scored_weighted_and_logged_in_training_and_evaluation(folder, here):
    place = f"{module_of(folder)}:joints_apart"
    changes = {"rewards.custom": {place: 0.5, f"{module_of(folder)}:rests_on_the_ground": 0.0}}
    assert here({**changes, "train.max_steps": 2}) == 0
    lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 2
    for line in lines:
        assert 0 < line["rewards/joints_apart/mean"] < 1
        assert line["rewards/joints_apart/std"] > 0
        assert "rewards/rests_on_the_ground/mean" not in line  # weight 0: disabled
        others = {"coverage": 5, "containment": 1, "sparsity": 1, "smoothness": 1}
        total = sum(weight * line[f"rewards/{name}/mean"] for name, weight in others.items())
        assert line["reward"] == pytest.approx(total + 0.5 * line["rewards/joints_apart/mean"], abs=1e-5)
    mean = json.loads((folder / "run/after.json").read_text())["mean"]
    assert 0 < mean["joints_apart"] <= 1
    total = sum(weight * mean[name] for name, weight in others.items()) + 0.5 * mean["joints_apart"]
    assert mean["total"] == pytest.approx(total)


def test_a_failure_ends_the_run_with_one_sentence(folder, here, capsys):
    """The check's creature passes, a rollout does not."""
    name = f"{module_of(folder)}_failing"
    (folder / f"{name}.py").write_text(
        "def picky(rig):\n    if len(rig.joints) < 8:\n        raise KeyError('tail')\n    return 1.0\n"
    )
    assert here({"rewards.custom": f"{name}:picky", "eval.before_and_after": False}) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.fullmatch(
        rf"failed: the reward {name}:picky failed for a rig of \d joints? on mesh '\w+' "
        rf"\(KeyError: 'tail', {name}\.py line 3\); fix the function and run the same command again",
        message,
    ), message


def test_a_function_that_does_not_work_is_refused_before_the_run(folder, here, capsys):
    assert here({"rewards.custom": f"{module_of(folder)}:joints_appart"}) == 2
    (message,) = capsys.readouterr().err.strip().splitlines()
    assert message.startswith(f"error: 'rewards.custom': the reward {module_of(folder)}:joints_appart is not")
    assert not (folder / "run").exists()


def test_the_evaluation_before_is_repeated_if_the_code_has_changed(folder, make_recipe):
    from rl.first_evaluation import fingerprint

    recipe = make_recipe({"rewards.custom": f"{module_of(folder)}:joints_apart"})
    first = fingerprint(recipe, [])
    assert fingerprint(recipe, []) == first
    path = folder / f"{module_of(folder)}.py"
    path.write_text(path.read_text() + "\n# changed\n")
    assert fingerprint(recipe, []) != first
