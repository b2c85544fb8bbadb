"""500 cheap steps with Ray: memory, file descriptors and object store stay as they are after the warm-up."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from policy import pretrain_skin_vae, pretrain_tokenrig
from policy.pretraining import loop
from tests.policy import tiny_recipes
from tests.rl import tiny
from tests.soak import usage
from tests.soak.campaign import FOLDER
from tests.soak.curve import GROWTH_PERCENT, check, growth, read

pytestmark = [pytest.mark.soak, pytest.mark.filterwarnings("ignore::FutureWarning")]

STEPS, EVERY, WARM_UP = 500, 5, 100
CHANGES = {
    # More meshes than workers keep unpacked (64).
    "data.train_count": 80,
    "workers": {"backend": "ray", "count": 2},
    "train.max_steps": STEPS,
    "train.save_steps": 100,
    "train.max_completion_length": 80,
}


def test_500_steps_with_ray(tmp_path: Path):
    tiny.make_policy().save(tmp_path / "policy")
    recipe = tiny.write_recipe_file(tmp_path / "recipe.yaml", tmp_path / "policy", tmp_path / "run", CHANGES)
    samples_file = tmp_path / "usage.jsonl"
    script = Path(__file__).with_name("watched_training.py")
    finished = subprocess.run(
        [sys.executable, script, samples_file, str(EVERY), recipe], stdout=subprocess.DEVNULL
    )
    assert finished.returncode == 0
    samples = read(samples_file)
    found = growth(samples, WARM_UP, STEPS)
    store = [sample["object_store"] for sample in samples if sample["step"] >= WARM_UP]
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / "memory.json").write_text(json.dumps(summary(samples, found), indent=1) + "\n")
    check(found, store)


def summary(samples: list[dict], found: dict[str, dict[str, float]]) -> dict:
    """What is committed: growth, and memory in MB at every 25th step."""
    curve = {
        role: [round(s["processes"][role]["anon"] / 1e6, 1) for s in samples if s["step"] % 25 == 0]
        for role in found
    }
    store = [sample["object_store"] for sample in samples if sample["step"] % 25 == 0]
    return {"steps": STEPS, "warm_up": WARM_UP, "processes": found, "object_store": store, "memory_mb": curve}


@pytest.mark.parametrize("stage", ["skin_vae", "tokenrig"])
def test_300_steps_of_pre_training(tmp_path: Path, monkeypatch, stage: str):
    """Both stages in this process, sampled at every checkpoint of ten steps."""
    samples: list[dict] = []
    save = loop.save_checkpoint

    def sampled(*arguments, **options):
        result = save(*arguments, **options)
        processes = usage.sample(psutil.Process())
        samples.append({"step": 10 * (len(samples) + 1), "processes": {"trainer": processes["trainer"]}})
        return result

    monkeypatch.setattr(loop, "save_checkpoint", sampled)
    values = {"skin_vae": tiny_recipes.SKIN_VAE, "tokenrig": tiny_recipes.TOKENRIG}[stage]
    steps = {"max_steps": 300, "save_steps": 10, "logging_steps": 10}
    if stage == "tokenrig":
        first = tiny_recipes.write(tmp_path, tiny_recipes.SKIN_VAE, "first.yaml")
        assert pretrain_skin_vae.main([first, f"loop.output_dir={tmp_path / 'first'}"]) == 0
        samples.clear()
        values = {**values, "skin_vae": str(tmp_path / "first" / "skin_vae")}
    recipe = tiny_recipes.write(tmp_path, {**values, "loop": {**values["loop"], **steps}})
    main = {"skin_vae": pretrain_skin_vae.main, "tokenrig": pretrain_tokenrig.main}[stage]
    assert main([recipe]) == 0
    found = growth(samples, WARM_UP, 300)["trainer"]
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"pretraining_{stage}.json").write_text(json.dumps(found) + "\n")
    assert found["growth_percent"] < GROWTH_PERCENT, found
    assert found["fds_min"] == found["fds_max"], found
