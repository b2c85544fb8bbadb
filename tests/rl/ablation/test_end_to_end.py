"""A tiny matrix through the real command line: real training, evaluation, tables, plots and page."""

import json
import os

import pytest
import yaml

from rl import ablate, evaluate
from tests.rl import tiny
from tests.rl.ablation.conftest import ROOT
from tests.rl.commands import evaluation, metrics


@pytest.mark.usefixtures("stop_signal_handlers")
def test_two_variants_with_one_seed(policy_path, tmp_path, monkeypatch, capsys):
    tiny.write_recipe_file(tmp_path / "base.yaml", policy_path, tmp_path / "own", {"eval.samples": 1})
    output = tmp_path / "out"
    whole = {
        "recipe": "base.yaml",
        "overrides": ["train.max_steps=1", "report.meshes=0"],
        "variants": {"no_coverage": ["rewards.coverage.weight=0"]},
        "seeds": [7],
        "jobs": 2,
        "output_dir": str(output),
    }
    (tmp_path / "ablation.yaml").write_text(yaml.safe_dump(whole))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))))
    assert ablate.main([str(tmp_path / "ablation.yaml")]) == 0
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "ablation 2/2 no_coverage seed 7: total " in said

    data = json.loads((output / "table.json").read_text())
    base, no_coverage = data["variants"]
    assert (base["name"], no_coverage["name"]) == ("base", "no_coverage")
    untrained = evaluation(output / "untrained" / "evaluation.json")
    for result, run in ((base, "base/seed-7"), (no_coverage, "no_coverage/seed-7")):
        (line,) = metrics(output / run)  # trained with its own rewards
        rewards = {name: line[f"rewards/{name}/mean"] for name in ("containment", "sparsity", "smoothness")}
        if run.startswith("no"):
            assert line["reward"] == pytest.approx(sum(rewards.values()), abs=1e-5)
        # Evaluated with the base's.
        assert evaluation(output / run / "before.json") == untrained
        before, after = (evaluation(output / run / name)["mean"] for name in ("before.json", "after.json"))
        weighted = 5 * after["coverage"] + sum(after[name] for name in rewards)
        assert after["total"] == pytest.approx(weighted)
        assert result["change"]["total"]["mean"] == pytest.approx(after["total"] - before["total"])
        for name in ("policy", "rig.glb", "recipe.yaml", "log.txt"):
            assert (output / run / name).exists()
    assert (output / "plots" / "changes.png").is_file()
    page = (output / "report.html").read_text()
    assert "base/seed-7" in page
    assert "no_coverage/seed-7" in page

    # The same numbers as the command that evaluates a policy.
    overrides = [f"policy.path={output}/no_coverage/seed-7/policy", f"output_dir={tmp_path / 'again'}"]
    assert evaluate.main([str(tmp_path / "base.yaml"), *overrides]) == 0
    again = evaluation(tmp_path / "again" / "evaluation.json")
    assert again == evaluation(output / "no_coverage" / "seed-7" / "after.json")
