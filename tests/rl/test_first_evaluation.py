"""The evaluation before training: what it depends on, and what it does not."""

import pytest

from rl.first_evaluation import fingerprint
from rl.meshes import load_meshes


@pytest.mark.parametrize(
    ("change", "other"),
    [
        ({"eval.seed": 7}, True),
        ({"rewards.resolution": 25}, True),
        ({"deformation.max_angle_deg": 60}, True),
        ({"deformation.wide_poses": 2}, True),
        ({"rollout.engine": "plain"}, True),
        ({"data.class_name": "vroid"}, True),
        ({"data.eval_count": 1}, True),  # other meshes
        ({"eval.every": 3, "eval.every_samples": 2, "eval.every_meshes": 1, "eval.best_by": "valid"}, False),
        ({"eval.sheets": 2, "report.every": 1}, False),
        ({"train.max_steps": 9, "output_dir": "elsewhere"}, False),
    ],
)
def test_what_the_evaluation_before_training_depends_on(make_recipe, change, other):
    def mark(changes):
        recipe = make_recipe(changes)
        meshes = load_meshes(recipe, training=False)
        return fingerprint(recipe, [meshes.samples[place] for place in meshes.held_out])

    assert (mark(change) != mark({})) == other
