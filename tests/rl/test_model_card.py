"""The model card of a run's policy: front matter, data, recipe, results by hand, licences, privacy."""

import json
import re
import shutil

import pytest
from huggingface_hub import ModelCard

from rl.best_policy import BestPolicy
from rl.evaluation_results import Evaluation, compare, read_evaluation
from rl.model_card import BasePolicy, CardFacts, base_policy, changed_keys, model_card, shown_place
from rl.recipe import Recipe, check_recipe
from tests.docs.pages import code_blocks, section, table_rows
from tests.rl.commands import ROOT

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

PLAIN = BasePolicy("checkpoints/small", None, "mit", False)
NAMES = ("coverage", "containment", "sparsity", "smoothness")


def evaluation(name: str, totals: dict[str, float]) -> Evaluation:
    """Meshes with one rig each, of which only the total is interesting."""
    per_mesh = {mesh: {**dict.fromkeys(NAMES, 0.5), "total": total} for mesh, total in totals.items()}
    mean = {**dict.fromkeys(NAMES, 0.5), "total": sum(totals.values()) / len(totals), "valid": 1.0}
    for row in per_mesh.values():
        row["valid"] = 1.0
    error = {**dict.fromkeys(mean, 0.0), "total": 0.25}
    return Evaluation(name, 1, 7, per_mesh, mean, error, {})


BEFORE = evaluation("before", {"secret_a": 4.0, "secret_b": 5.0})
AFTER = evaluation("after", {"secret_a": 4.5, "secret_b": 6.5})


def facts(recipe: Recipe, **changes: object) -> CardFacts:
    values = {"base": PLAIN, "processes": 2, "training": 96, "held_out": 2, "step": 45}
    return CardFacts(recipe, **{**values, "before": BEFORE, "after": AFTER, **changes})


def recipe_of(make_recipe, changes: dict | None = None) -> Recipe:
    return make_recipe({"policy.path": "checkpoints/small", **(changes or {})})


def test_front_matter_is_that_of_a_hugging_face_card(make_recipe):
    text = model_card(facts(recipe_of(make_recipe)))
    card = ModelCard(text)  # raises for a block that is not YAML, or metadata of another type
    assert card.data.to_dict() == {
        "license": "mit",
        "library_name": "tokenrig-rl",
        "tags": card.data.tags,
    }
    assert {"tokenrig", "rigging", "grpo"} <= set(card.data.tags)
    assert card.text.lstrip().startswith("# run\n")
    from_hub = facts(recipe_of(make_recipe), base=BasePolicy("org/rigger", "org/rigger", "mit", False))
    data = ModelCard(model_card(from_hub)).data
    assert (data.base_model, data.to_dict()["base_model_relation"]) == ("org/rigger", "finetune")


def test_results_are_the_means_with_the_error_of_the_paired_difference(make_recipe):
    text = section(model_card(facts(recipe_of(make_recipe))), "## Results")
    rows = {row[0]: row[1:] for row in table_rows(text, "")}
    # Differences 0.5 and 1.5: mean 1, variance (0.25 + 0.25) / (2 - 1), s.e. sqrt(0.5 / 2).
    assert rows["total ↑"] == ["4.500", "5.500", "+1.000 ± 0.500"]
    assert rows["coverage ↑"] == ["0.500", "0.500", "+0.000 ± 0.000"]
    assert "2 held-out meshes, 1 rig each, sampled, seed 7" in text
    alone = section(model_card(facts(recipe_of(make_recipe), before=None)), "## Results")
    assert {row[0]: row[1:] for row in table_rows(alone, "")}["total ↑"] == ["5.500", "0.250"]
    assert "no such evaluation of the policy it started from" in alone
    without = section(model_card(facts(recipe_of(make_recipe), before=None, after=None)), "## Results")
    assert "did not evaluate this policy (`eval.before_and_after: false`)" in without


def test_the_best_policy_says_how_it_was_chosen(make_recipe):
    best = BestPolicy(30, "coverage", 0.5, True, {}, {})
    text = model_card(facts(recipe_of(make_recipe, {"eval.every": 10}), best=best, step=30))
    assert "# run (best policy)\n" in text
    chosen = (
        "The policy of step 30 has the best `coverage` of the evaluations during training, every 10 steps"
    )
    assert chosen in text
    assert "after 30 steps of reinforcement learning" in text


def test_recipe_and_data_are_the_runs(make_recipe):
    changes = {
        **{"data.kinds": ["quadruped"], "data.max_turn_deg": 45, "data.seed": 3},
        **{"train.max_steps": 50, "train.learning_rate": 5e-5, "train.beta": 0.04},
        **{"rewards.bone_influence.weight": 2.0, "rewards.credit": "phase", "deformation.wide_poses": 2},
        "policy.lora": {"rank": 4},
    }
    recipe = recipe_of(make_recipe, changes)
    text = model_card(facts(recipe))
    rows = {row[0]: row[1] for row in table_rows(section(text, "## Recipe"), "")}
    assert rows["started from"] == "`checkpoints/small`"
    assert rows["trained"] == "LoRA adapters of rank 4, merged; the mesh encoder is frozen"
    assert rows["steps"] == "45 of 50, in 2 processes"
    assert rows["rollouts"] == "4 per mesh, 16 per step"  # 8 rows in each of 2 processes
    weights = "coverage × 5, containment × 1, sparsity × 1, smoothness × 1, bone_influence × 2"
    assert rows["rewards"] == f"{weights}; credited by phase"
    assert rows["poses of the smoothness reward"] == "5 random, up to 30°; 2 more, up to 90°"
    assert rows["loss"] == "grpo, clip 0.2, KL coefficient 0.04"
    assert rows["learning rate"] == "5e-05, constant"
    assert "tokenrig-rl " in rows["software"]
    data = {row[0]: row[1:] for row in table_rows(section(text, "## Data"), "")}
    source = "procedural creatures (kinds quadruped, turned by up to 45°, data.seed 3)"
    assert data == {"training": ["96", source], "held out": ["2", source]}
    assert "rewards compare with no other rig" in text
    assert "skeletons of the meshes' own rigs" in model_card(
        facts(recipe_of(make_recipe, {"data.skeleton": "given"}))
    )


def test_the_keys_that_differ_make_the_same_training_again(make_recipe):
    recipe = recipe_of(make_recipe, {"eval.samples": 5, "train.save_steps": 7, "ray.namespace": "mine"})
    changed = changed_keys(recipe)
    assert changed["train"]["num_generations"] == 4
    assert changed["rewards"] == {"resolution": 24, "max_scoring_vertices": 96}
    assert not {"eval", "ray", "output_dir", "workers"} & set(changed)
    assert "save_steps" not in changed["train"]
    assert changed_keys(check_recipe(Recipe())) == {}


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("rigs/mine", "rigs/mine"),
        ("meshes/**/*.glb", "meshes/**/*.glb"),
        ("/home/me/rigs/mine", "mine"),
        ("/home/me/meshes/**/*.glb", "meshes/**/*.glb"),
        ("/*.glb", "*.glb"),
        ("../../me/fox.glb", "fox.glb"),
        ("../*/fox.glb", "*/fox.glb"),
        ("/", "/"),
        ("package.module:function", "package.module:function"),
    ],
)
def test_places_on_the_machine_are_not_shown(place, shown):
    assert shown_place(place) == shown


def test_no_path_of_the_machine_and_no_name_of_a_mesh(make_recipe, tmp_path):
    changes = {
        **{"data.meshes": [f"{tmp_path}/private/**/*.glb", str(ROOT)], "data.eval_meshes": str(tmp_path)},
        **{"policy.path": str(tmp_path / "base"), "policy.skin_vae": str(tmp_path / "vae")},
        "rig.mesh": str(tmp_path / "mesh.glb"),
    }
    recipe = make_recipe(changes)
    text = model_card(facts(recipe, base=base_policy(recipe)))
    assert str(tmp_path.parent) not in text
    assert str(ROOT) not in text
    assert "secret_a" not in text
    assert "private/**/*.glb" in text
    assert "`base`" in text


@pytest.mark.parametrize(
    ("licence", "imported", "meshes", "expected", "said"),
    [
        ("mit", False, None, "mit", ["(`base`): mit, says their model card", "Meshes**: made by"]),
        (None, False, None, "unknown", ["(`base`): unknown; their folder", "weights**: unknown therefore"]),
        (None, True, None, "unknown", ["imported from a released checkpoint; the terms of its publisher"]),
        ("mit", False, "rigs", "unknown", ["recorded no licence of theirs", "weights**: unknown therefore"]),
    ],
)
def test_what_is_unknown_of_licences_is_said(make_recipe, licence, imported, meshes, expected, said):
    recipe = recipe_of(make_recipe, {"data.meshes": meshes})
    text = model_card(facts(recipe, base=BasePolicy("base", None, licence, imported)))
    assert ModelCard(text).data.license == expected
    part = section(text, "## Licence")
    assert all(sentence in part for sentence in said)
    assert ("unknown" in part) == (expected == "unknown")


def test_the_base_policys_own_card_names_its_licence(make_recipe, policy_path, tmp_path, capsys):
    folder = tmp_path / "hub" / "models--org--rigger-two" / "snapshots" / "abc123"
    shutil.copytree(policy_path, folder)
    recipe = make_recipe({"policy.path": str(folder)})
    assert base_policy(recipe) == BasePolicy("org/rigger-two", "org/rigger-two", None, False)
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Theirs\n")
    assert base_policy(recipe).licence == "apache-2.0"
    (folder / "README.md").write_text("---\nlicense: unknown\n---\n")
    assert base_policy(recipe).licence is None
    capsys.readouterr()
    (folder / "README.md").write_text("---\nlicense: [\n---\n")
    assert base_policy(recipe).licence is None
    assert f"note: {folder}/README.md has no readable YAML block, so no licence" in capsys.readouterr().err


def test_the_shipped_pair_says_its_licence(make_recipe, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert base_policy(check_recipe(Recipe())) == BasePolicy("checkpoints/small", None, "mit", False)


def test_loading_commands_have_the_runs_values(make_recipe):
    recipe = recipe_of(make_recipe, {"data.class_name": None})
    text = model_card(facts(recipe))
    command = code_blocks(text, "bash")[0]
    assert "data.points=64 data.class_name=null train.max_completion_length=160" in command
    assert code_blocks(text, "python")[0].startswith("import policy.auto")


def test_a_run_writes_the_cards_of_both_policies(here, tmp_path):
    """One process, an evaluation during training at each step; then one more step of the same run."""
    output = tmp_path / "run"
    quick = {
        "train.max_completion_length": 60,
        "data.train_count": 2,
        "data.eval_count": 2,
        "eval.samples": 1,
    }
    assert here({**quick, "eval.every": 1, "train.max_steps": 1, "train.learning_rate": 0.01}) == 0
    before, after = (read_evaluation(output / name) for name in ("before.json", "after.json"))
    text = (output / "policy" / "README.md").read_text("utf-8")
    rows = {row[0]: row[1:] for row in table_rows(section(text, "## Results"), "")}
    change = compare(before, after)["total"]
    expected = [f"{before.mean['total']:.3f}", f"{after.mean['total']:.3f}"]
    assert rows["total ↑"] == [*expected, f"{change.mean:+.3f} ± {change.standard_error:.3f}"]
    assert ModelCard(text).data.license == "unknown"  # the tiny policy's folder has no card
    assert "| started from | `tiny` |" in text
    assert str(tmp_path) not in text

    start = json.loads((output / "start.json").read_text())
    best = json.loads((output / "policy_best" / "best.json").read_text())
    assert start["settings"] == best["settings"]
    assert here({**quick, "eval.every": 1, "train.max_steps": 2, "train.learning_rate": 0.01}) == 0
    assert json.loads((output / "start.json").read_text()) == start
    best = json.loads((output / "policy_best" / "best.json").read_text())
    text = (output / "policy_best" / "README.md").read_text("utf-8")
    rows = {row[0]: row[1:] for row in table_rows(section(text, "## Results"), "")}
    assert rows["total ↑"][:2] == [f"{start['mean']['total']:.3f}", f"{best['mean']['total']:.3f}"]
    assert f"The policy of step {best['step']} has the best `total`" in text
    assert "steps | 2 of 2, in 1 process |" in (output / "policy" / "README.md").read_text("utf-8")
    written = [path for path in output.glob("policy*/**/*.*") if path.suffix in (".md", ".json")]
    assert not [path for path in written if str(tmp_path) in path.read_text("utf-8")]
    assert not re.search(r"(?<![\w.])/(tmp|home|root)/", text)
