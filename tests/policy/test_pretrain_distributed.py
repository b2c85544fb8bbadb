"""Pre-training in two CPU processes under accelerate: plain data parallel, and DeepSpeed's ZeRO-2."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from policy import load as load_policy
from policy import pretrain_skin_vae
from policy.skintokens.skin_vae import SkinVAE, SkinVAEConfig
from tests.policy.pretraining.test_loop import recipe, run
from tests.policy.tiny_recipes import SKIN_VAE, TOKENRIG, metrics, write
from tests.policy.two_processes import CONSTANT

ROOT = Path(__file__).resolve().parents[2]
# Only against a hang: nothing here takes a tenth of it.
TIMEOUT = 600


def launch(folder: Path, optimizer: str, *arguments: object, **environment: str) -> None:
    """Run two_processes.py in two processes; small networks, one thread each."""
    torch.manual_seed(3)
    SkinVAE(SkinVAEConfig(**SKIN_VAE["model"])).save(folder / "vae")
    stages = {
        "pretrain_skin_vae": SKIN_VAE,
        "pretrain_tokenrig": {**TOKENRIG, "skin_vae": str(folder / "vae")},
    }
    for name, values in stages.items():
        (folder / name).mkdir()
        loop = {**values["loop"], "optimizer": optimizer}
        path = write(folder / name, {**values, "loop": loop})
        shutil.move(path, folder / f"{name}.yaml")
    command = [Path(sys.executable).parent / "accelerate", "launch", "--main_process_port", "0", *arguments]
    result = subprocess.run(
        [*command, ROOT / "tests/policy/two_processes.py", folder, optimizer],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("skin VAE: 100%") >= 1


def of_ranks(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The weights that both processes ended with, which must be the same."""
    first, second = (torch.load(folder / f"{name}-{rank}.pt", weights_only=True) for rank in range(2))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    return first


def check_stages(folder: Path) -> None:
    """One metrics file and one result each, sound and moved."""
    vae = SkinVAE.load(folder / "pretrain_skin_vae" / "run" / "skin_vae")
    ended = of_ranks(folder, "SkinVAE")
    assert all(torch.equal(tensor, ended[name]) for name, tensor in vae.state_dict().items())
    policy = load_policy(folder / "pretrain_tokenrig" / "run" / "policy")
    ended = of_ranks(folder, "TokenRigForCausalLM")
    for name, tensor in policy.model.state_dict().items():
        assert torch.equal(tensor, ended[name].bfloat16().float())
    start = pretrain_skin_vae.initial_model(
        pretrain_skin_vae.load_recipe(str(folder / "pretrain_skin_vae.yaml"), [])
    )
    moved = [
        name for name, tensor in start.state_dict().items() if not torch.equal(tensor, vae.state_dict()[name])
    ]
    assert len(moved) > 0.9 * len(vae.state_dict())
    for name in ("pretrain_skin_vae", "pretrain_tokenrig"):
        lines = metrics(folder / name / "run")
        assert [line["step"] for line in lines] == [2, 4, 6]
        assert all(0 < line["loss"] < 10 for line in lines)
        assert len(list((folder / name / "run").glob("state-*"))) == 1


def check_small_network(folder: Path, optimizer: str) -> None:
    """Two processes' batches of two are one process's batches of four, also stopped and accumulated."""
    alone = {
        "whole": run(recipe(folder / "alone", **CONSTANT, batch_size=4, optimizer=optimizer)),
        "accumulated": run(recipe(folder / "alone8", **CONSTANT, batch_size=8, optimizer=optimizer)),
    }
    alone["parts"] = alone["whole"]
    start = run(recipe(folder / "one", **{**CONSTANT, "max_steps": 1}, learning_rate=1e-12)).state_dict()
    for name, steps in (("best", 4), ("ended", 2)):  # validated by the main process alone
        alone[name] = run(
            recipe(
                folder / f"alone {name}",
                **{**CONSTANT, "max_steps": steps},
                batch_size=4,
                optimizer=optimizer,
            )
        )
    assert [path.name for path in (folder / "ended").glob("state-*")] == ["state-4"]
    for name, model in alone.items():
        together = of_ranks(folder, name)
        for key, tensor in model.state_dict().items():
            # Muon rounds to bfloat16 on its way, so that sums of another order show.
            torch.testing.assert_close(tensor, together[key], rtol=1e-3, atol=1e-5)
            assert not torch.allclose(tensor, start[key], rtol=1e-3, atol=1e-5)


def test_two_processes_share_the_work(tmp_path):
    launch(
        tmp_path,
        "muon",
        *("--multi_gpu", "--num_processes", "2", "--num_machines", "1"),
        *("--mixed_precision", "no", "--dynamo_backend", "no"),
        ACCELERATE_USE_CPU="true",
    )
    check_stages(tmp_path)
    check_small_network(tmp_path, "muon")


@pytest.mark.skipif(shutil.which("g++") is None, reason="DeepSpeed compiles its communication with g++")
def test_zero_2_trains_as_one_process_does(tmp_path):
    """DeepSpeed on two CPU processes; minutes the first time, when it compiles its communication."""
    configuration = (ROOT / "recipes/accelerate/zero2.yaml").read_text()
    (tmp_path / "zero2.yaml").write_text(re.sub(r"num_processes: \d+", "num_processes: 2", configuration))
    launch(tmp_path, "adamw", "--config_file", tmp_path / "zero2.yaml", DS_ACCELERATOR="cpu")
    assert (tmp_path / "pretrain_skin_vae" / "run" / "state-6" / "zero_to_fp32.py").is_file()
    check_stages(tmp_path)
    check_small_network(tmp_path, "adamw")


def test_muon_under_deepspeed_is_refused_in_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    assert pretrain_skin_vae.main([write(tmp_path, SKIN_VAE)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: 'loop.optimizer: muon' needs whole matrices, which DeepSpeed splits")
    assert printed.count("\n") == 1
    assert not (tmp_path / "run").exists()
