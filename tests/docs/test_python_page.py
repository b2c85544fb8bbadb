"""docs/python.md: the notebook is made from it, and its cells run."""

import json
import signal
from typing import Any

import pytest

from data.gltf.skinned import read_skinned_glb
from data.stop_signals import STOP_SIGNALS
from rl.evaluation_results import read_evaluation
from tests.docs.pages import ROOT, code_blocks, load_program
from tests.rl import tiny

make_notebook = load_program("make_notebook")
NOTEBOOK = ROOT / "docs" / "python.ipynb"
PAGE = (ROOT / "docs" / "python.md").read_text("utf-8")


def cells(kind: str) -> list[str]:
    found = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in found if cell["cell_type"] == kind]


def test_the_notebook_is_made_from_the_page():
    assert make_notebook.main(["--check"]) == 0, "run python docs/make_notebook.py"
    assert [f"{cell}\n" for cell in cells("code")] == code_blocks(PAGE, "python")
    assert [len(cells(kind)) for kind in ("markdown", "code")] == [len(PAGE.split("```python")), 9]
    assert NOTEBOOK.stat().st_size < 20_000


def test_a_page_that_changed_is_noticed(tmp_path, monkeypatch, capsys):
    page = tmp_path / "python.md"
    page.write_text("# Title\n\nText.\n\n```python\nx = 1\n```\n\n```bash\nls\n```\n")
    monkeypatch.setattr(make_notebook, "PAGE", page)
    monkeypatch.setattr(make_notebook, "NOTEBOOK", tmp_path / "python.ipynb")
    assert make_notebook.main(["--check"]) == 1
    assert capsys.readouterr().out == "docs/python.ipynb is out of date; run python docs/make_notebook.py\n"
    assert make_notebook.main([]) == 0
    made = json.loads((tmp_path / "python.ipynb").read_text())
    assert [cell["cell_type"] for cell in made["cells"]] == ["markdown", "code", "markdown"]
    assert made["cells"][1]["source"] == ["x = 1"]
    assert make_notebook.main(["--check"]) == 0


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_cells_run_one_after_the_other(tmp_path, capsys):
    """With a tiny random policy and small settings instead of those of the first cell."""
    first, *others = cells("code")
    names: dict[str, Any] = {"__name__": "notebook"}
    exec(first, names)
    assert names["root"] == ROOT
    tiny.make_policy().save(tmp_path / "policy")
    names["output"] = tmp_path / "run"
    names["settings"] = [
        *(f"output_dir={names['output']}", f"policy.path={tmp_path / 'policy'}", "workers.backend=inline"),
        *("data.train_count=2", "data.eval_count=2", "data.points=64", "eval.samples=1", "train.max_steps=2"),
        *("rewards.resolution=24", "rewards.max_scoring_vertices=96", "eval.metric_vertices=16"),
        *("train.num_generations=4", "train.per_device_train_batch_size=4"),
        *("train.max_completion_length=160", "train.learning_rate=0.001", "rig.candidates=8"),
    ]
    before = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
    for cell in others:
        exec(cell, names)
    assert {signum: signal.getsignal(signum) for signum in STOP_SIGNALS} == before

    run, output = names["run"], tmp_path / "run"
    shown = capsys.readouterr().out
    assert [step["step"] for step in names["steps"]] == [1, 2]
    assert run.before == read_evaluation(output / "before.json")
    assert run.after == read_evaluation(output / "after.json")
    assert f"total {names['change'].mean:+.3f} ± " in shown
    assert (names["start"].policy, names["refined"].policy) == (
        str(tmp_path / "policy"),
        str(output / "policy"),
    )
    assert names["refined"].seed == 7
    rigged, again = names["rigged"], names["again"]
    _, written = read_skinned_glb(output / "rigged.glb")
    assert len(written.joints) == len(rigged.rig.joints)
    # The creature of the file and the one in memory are one mesh, and seed and policy are the same.
    assert again.total == pytest.approx(rigged.total, abs=0.05)
    scores = names["scores"]  # of the written file; the smoothness reward has poses of its own there
    for name in ("coverage", "containment", "sparsity"):
        assert scores[name] == pytest.approx(rigged.written_rewards[name], abs=0.02)
    assert "creature.glb: total " in shown
    assert "rigged.glb: total " in shown
