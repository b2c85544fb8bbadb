"""Groups stay whole in micro-batches, and the update does not change."""

import pytest
import torch
from trl.trainer.utils import shuffle_sequence_dict, split_tensor_dict

from rl import trainer as trainer_module
from rl.whole_groups import group_order, regroup
from tests.rl.training_runs import FakeService, Run, weights


def test_meshes_keep_the_order_of_their_first_rows():
    meshes = torch.tensor([7, 3, 7, 9, 3, 3, 9])
    assert group_order(meshes).tolist() == [0, 2, 1, 4, 5, 3, 6]


def test_rows_move_together():
    torch.manual_seed(0)
    rows = torch.arange(12)
    batch = {
        "prompt_ids": torch.stack([rows // 4 + 90, rows], dim=1),
        "value": rows * 10,
        "names": [str(int(row)) for row in rows],
        "items": torch.tensor(5),
        "nothing": None,
    }
    shuffled = split_tensor_dict(shuffle_sequence_dict(batch), 3)
    assert any(len(set(part["prompt_ids"][:, 0].tolist())) > 1 for part in shuffled)
    parts = regroup(shuffled)
    assert [len(set(part["prompt_ids"][:, 0].tolist())) for part in parts] == [1, 1, 1]
    assert parts[0]["prompt_ids"][0, 0] == shuffled[0]["prompt_ids"][0, 0]
    for part in parts:
        assert (part["value"] == part["prompt_ids"][:, 1] * 10).all()
        assert part["names"] == [str(int(row)) for row in part["prompt_ids"][:, 1]]
        assert part["items"] == 5
        assert part["nothing"] is None


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("loss", ["grpo", "dapo"])
def test_the_update_is_that_of_shuffled_rows(make_recipe, tmp_path, monkeypatch, loss):
    """All micro-batches enter one optimiser step, of plain gradient descent."""
    seen = []
    outcomes = []
    for keep_whole in (True, False):
        changes = {
            "train.per_device_train_batch_size": 4,
            "train.gradient_accumulation_steps": 3,
            "train.max_steps": 1,
            "train.optim": "sgd",
            "train.learning_rate": 0.1,
            "train.max_grad_norm": 1e9,
            "train.loss_type": loss,
            "output_dir": str(tmp_path / f"whole-{keep_whole}"),
        }
        run = Run(make_recipe(changes), FakeService(lambda row: row / 12))
        trainer = run.trainer()
        original = type(trainer).compute_loss

        def record(self, model, inputs, *rest, original=original, **options):
            seen.append(len(set(inputs["prompt_ids"][:, 0].tolist())))
            return original(self, model, inputs, *rest, **options)

        with monkeypatch.context() as patch:
            patch.setattr(type(trainer), "compute_loss", record)
            if not keep_whole:
                patch.setattr(trainer_module, "regroup", lambda batches: batches)
            trainer.train()
        outcomes.append((run.before, weights(trainer.model)))
    assert seen[:3] == [1, 1, 1]
    assert max(seen[3:]) > 1
    (before, whole), (_, shuffled) = outcomes
    moved = max(float((whole[name] - before[name]).abs().max()) for name in whole)
    assert moved > 1e-4
    for name, weight in whole.items():
        torch.testing.assert_close(weight, shuffled[name], atol=1e-4 * moved, rtol=1e-5)
