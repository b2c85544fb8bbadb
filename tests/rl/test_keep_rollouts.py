"""Kept rollouts: which are chosen, kinds of failure, space, and what wandb gets."""

import json
from pathlib import Path

import pytest
import torch

import rl.keep_rollouts
from rewards.worker import UNSCORED, RolloutScore
from rl.keep_rollouts import Candidate, chosen, decoder_digest, ends
from rl.rollout_store import KeptRollout, read_rows
from tests.rl import tiny
from tests.rl.commands import metrics
from tests.rl.kept_rows import kept_row
from tests.rl.training_runs import FakeService, Run

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

QUICK = {
    **{"eval.before_and_after": False, "train.max_completion_length": 60, "train.save_steps": 2},
    **{"data.train_count": 2, "data.eval_count": 1, "train.max_steps": 3},
}
KEEPING = {**QUICK, "report.every": 2}


def kept(output: Path) -> list[KeptRollout]:
    return read_rows(output / "rollouts" / "rollouts.jsonl")


def test_space_is_bounded(here, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rl.keep_rollouts, "MEBIBYTE", 400_000)
    assert here({**KEEPING, "report.every": 1, "report.max_megabytes": 1}) == 0
    files = list((tmp_path / "run" / "rollouts").iterdir())
    assert sum(path.stat().st_size for path in files) <= 400_000
    steps = {one.step for one in kept(tmp_path / "run") if one.why != "failure"}
    assert 3 in steps
    assert steps < {1, 2, 3}
    assert "has reached report.max_megabytes=1" in capsys.readouterr().err


def test_what_the_scoring_reports_is_a_kind_of_failure(policy_path, tmp_path):
    """The first three complete rigs: unscored, refused, and with a reward that is not finite."""
    values = dict.fromkeys(("coverage", "containment", "sparsity", "smoothness"), 0.0)
    bad = iter(
        (
            UNSCORED,
            RolloutScore(values, False, {}, "joint 3 never reaches a root"),
            RolloutScore({**values, "coverage": float("nan")}, True),
        )
    )
    service = FakeService(lambda row: 1.0)
    good = service.score
    service.score = lambda row, rig: good(row, rig) if rig is None else next(bad, good(row, rig))
    changes = {**KEEPING, "train.max_steps": 1, "workers.max_failed_batches": 9}
    Run(tiny.make_recipe(policy_path, tmp_path / "run", changes), service).optimise()
    found = {one.kind for one in kept(tmp_path / "run") if one.why == "failure"}
    assert found >= {"the worker died", "joint N never reaches a root", "the reward coverage is not finite"}


def candidate(place: int, total: float, kind: str | None = None) -> Candidate:
    why = "failure" if kind else "best"
    return Candidate(kept_row(1, why, total, kind=kind, seed=place), place // 4, place)


def test_the_widest_group_and_new_kinds_are_chosen():
    groups = [
        *(candidate(place, total) for place, total in ((0, 3.0), (1, 2.5), (4, 2.0), (6, 0.5), (7, 2.0))),
        *(candidate(2, 0.0, "old"), candidate(5, 0.0, "new"), candidate(3, 0.0, "new")),
    ]
    found = [(one.row.why, one.place) for one in chosen(groups[::-1], {"old"})]
    assert found == [("best", 4), ("worst", 6), ("failure", 3)]
    assert chosen([], set()) == []


@pytest.mark.parametrize(
    ("totals", "expected"),
    [
        ([1.0], [("best", 0)]),
        ([1.0, 1.0], [("best", 0), ("worst", 1)]),
        ([1.0, 3.0, 2.0, 0.5], [("best", 1), ("worst", 3)]),
    ],
)
def test_ends_of_a_group(totals, expected):
    assert ends([(total, place) for place, total in enumerate(totals)]) == expected


def test_the_digest_is_that_of_all_weights(policy):
    before = decoder_digest(policy.skin_vae, policy.vocabulary)
    assert before == decoder_digest(tiny.make_policy().skin_vae, tiny.VOCABULARY)
    with torch.no_grad():
        next(iter(policy.skin_vae.parameters())).view(-1)[0] += 1
    assert before != decoder_digest(policy.skin_vae, policy.vocabulary)


def test_rollouts_that_serve_several_steps_are_kept_when_they_are_sampled(here, tmp_path):
    """Sampled in steps 1 and 3: what step 2 asks for is kept one step later, in the last but one.

    With phase credit the batch has an advantage for every place of the longest completion.
    """
    assert here({**KEEPING, "rewards.credit": "phase", "train.num_iterations": 2, "train.max_steps": 4}) == 0
    assert all(len(one.advantage) == len(one.tokens) for one in kept(tmp_path / "run"))
    assert sorted({one.step for one in kept(tmp_path / "run") if one.why != "failure"}) == [1, 3]


def test_wandb_gets_objects_pictures_and_a_table(here, tmp_path, monkeypatch):
    """Offline: the media and the history are in the run's folder."""
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_SILENT", "true")
    import wandb

    logged: list[dict] = []
    log = wandb.Run.log
    monkeypatch.setattr(
        wandb.Run, "log", lambda self, data, *rest, **more: (logged.append(data), log(self, data, *rest))[1]
    )
    changes = {**KEEPING, "train.max_steps": 1, "train.report_to": "wandb", "eval.every": 1}
    assert here(changes) == 0
    wandb.finish()
    media = next((tmp_path / "wandb").glob("offline-run-*")) / "files" / "media"
    objects = [path.read_bytes() for path in media.rglob("*.glb")]
    own = {path.read_bytes() for path in (tmp_path / "run" / "rollouts").glob("*.glb")}
    assert set(objects) == own
    assert len(list(media.rglob("*.png"))) == len(own)
    tables = [json.loads(path.read_text()) for path in media.rglob("*.table.json")]
    rows = kept(tmp_path / "run")
    assert max(len(table["data"]) for table in tables) == len(rows)
    assert tables[0]["columns"][:4] == ["step", "why", "mesh", "total"]
    evaluations = [line for line in logged if "eval/total" in line]
    assert [line["train/global_step"] for line in evaluations] == [0, 1]
    written = [line["eval/total"] for line in metrics(tmp_path / "run") if "eval/total" in line]
    assert [line["eval/total"] for line in evaluations] == written
