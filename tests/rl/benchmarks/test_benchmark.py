"""The command: its table, its JSON, its refusals, and that both sides do the same work."""

import json
from pathlib import Path

import pytest
import torch

from rl import benchmark
from rl.benchmarks.sizes import SIZES
from rl.benchmarks.step_parts import Parts
from rl.benchmarks.workload import make_workload

BASELINE_FILE = Path(__file__).with_name("baseline.json")


@pytest.fixture(scope="module")
def parts() -> Parts:
    return Parts(make_workload(SIZES["tiny"], torch.device("cpu")))


def test_the_command_prints_a_table_and_json(tmp_path, capsys):
    file, baseline = tmp_path / "found.json", tmp_path / "baseline.json"
    baseline.write_text(json.dumps({"tiny": {"step_ratio": {"value": 1e-6, "tolerance": 0.5}}}))
    arguments = ["--size", "tiny", "--json", str(file), "--check", str(baseline)]
    assert benchmark.main(arguments) == 0
    *table, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert found == json.loads(file.read_text())
    for key in ("rollout_ratio", "logprob_ratio", "decoder_ratio", "step_ratio", "step_seconds"):
        assert found[key] > 0
    names = ["rollout", "reference", "update", "optimiser", "decode", "score"]
    assert [part["name"] for part in found["parts"]] == names
    assert found["step_seconds"] == pytest.approx(sum(part["ours"] for part in found["parts"]))
    assert any(line.startswith("step ") for line in table)


def test_a_ratio_that_fell_is_an_error(tmp_path, capsys):
    baseline = tmp_path / "baseline.json"
    baseline.write_text(json.dumps({"tiny": {"decoder_ratio": {"value": 1e6, "tolerance": 0.1}}}))
    assert benchmark.main(["--size", "tiny", "--check", str(baseline)]) == 1
    assert "error: decoder_ratio is" in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_released_size_needs_a_gpu(capsys):
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(["--size", "released"])
    assert "--size released needs a CUDA GPU, and this machine has none" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--repeats", "0"], ["--check", "nowhere.json"]])
def test_mistakes_exit_with_2(arguments):
    with pytest.raises(SystemExit, match="2"):
        benchmark.main(["--size", "tiny", *arguments])


def test_both_rollouts_are_complete_rigs_within_the_bounds(parts):
    size, words = SIZES["tiny"], SIZES["tiny"].vocabulary
    for completions in (parts.rollout(), parts.plain_rollout()):
        assert len(completions) == size.rows
        for joints, parents, codes in parts.read(completions):
            assert size.joints[0] <= len(joints) <= size.joints[1]
            assert len(parents) == len(joints) == len(codes)
            assert codes.shape[1] == words.tokens_per_skin


def test_both_updates_have_the_same_gradient(parts):
    completions = parts.rollout()
    gradients = []
    for packed in (True, False):
        parts.optimizer.zero_grad()
        parts.update(completions, packed)
        named = parts.model.named_parameters()
        gradients.append({name: own.grad.clone() for name, own in named if own.grad is not None})
    parts.optimizer.zero_grad()
    assert gradients[0].keys() == gradients[1].keys()
    for name, own in gradients[0].items():
        torch.testing.assert_close(own, gradients[1][name], atol=1e-6, rtol=1e-4)


def test_the_plain_decoder_takes_its_share(parts):
    codes = [codes for *_, codes in parts.read(parts.rollout())]
    bones = sum(map(len, codes))
    assert parts.plain_decode(codes, 1.0) == bones
    assert parts.plain_decode(codes, 0.5) == round(bones / 2)
