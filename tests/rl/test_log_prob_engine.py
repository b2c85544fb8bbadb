"""Choice of the log-probability pass, and the difference between sampled and trained distributions."""

import pytest
import torch

from data.typed_recipe import RecipeError
from rl.log_prob_engine import TOLERANCES, LogProbEngine, compute_dtype
from rl.sampling_difference import sampling_difference
from tests.rl.training_runs import FakeService, Run

CPU = torch.device("cpu")


class Config:
    head_dim = 12


def checked(
    engine: str, error: float, dtype=torch.bfloat16, failure: Exception | None = None
) -> LogProbEngine:
    """An engine that has to be checked, as on CUDA, with a packed pass that is wrong by `error`."""
    choice = LogProbEngine(engine, CPU, dtype, Config())
    choice._unchecked = engine != "plain"

    def log_probs(packed: bool) -> torch.Tensor:
        if packed and failure is not None:
            raise failure
        return torch.full((7,), -1.0 + error * packed)

    assert choice.packed(log_probs) == choice.packed(None)  # checked once
    return choice


def test_engines_on_a_cpu(capsys):
    assert LogProbEngine("auto", CPU, torch.float32, Config()).packed(None)
    assert LogProbEngine("fast", CPU, torch.float32, Config()).packed(None)
    assert not LogProbEngine("plain", CPU, torch.float32, Config()).packed(None)
    assert capsys.readouterr().err == ""


def test_auto_falls_back_with_one_warning_and_fast_refuses(capsys):
    cuda = torch.device("cuda")
    assert not LogProbEngine("auto", cuda, torch.float32, Config()).packed(None)
    assert not LogProbEngine("plain", cuda, torch.float32, Config()).packed(None)
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "plain pass" in error
    assert "set train.bf16=true" in error
    with pytest.raises(RecipeError, match=r"log_probs.engine.*fast.*train.bf16=true"):
        LogProbEngine("fast", cuda, torch.float32, Config())


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_the_check_of_values(capsys, dtype):
    tolerance = TOLERANCES[dtype]
    assert checked("auto", 0.5 * tolerance, dtype).packed(None)
    assert capsys.readouterr().err == ""
    assert not checked("auto", 2 * tolerance, dtype).packed(None)
    assert not checked("auto", float("nan"), dtype).packed(None)
    assert not checked("auto", 0, dtype, RuntimeError("no kernel image")).packed(None)
    assert capsys.readouterr().err.count("plain pass") == 3
    assert not checked("plain", 1.0, dtype).packed(None)
    with pytest.raises(RecipeError, match="differ by"):
        checked("fast", 2 * tolerance, dtype)
    with pytest.raises(RecipeError, match="no kernel image"):
        checked("fast", 0, dtype, RuntimeError("no kernel image"))


def test_compute_dtypes():
    assert compute_dtype("bf16", torch.float32) == torch.bfloat16
    assert compute_dtype("fp16", torch.float32) == torch.float16
    assert compute_dtype("no", torch.float32) == torch.float32


def test_sampling_difference_over_real_tokens_and_processes():
    sampled = torch.tensor([[-1.0, -2.0], [-3.0, 0.0]])
    trained = torch.tensor([[-1.5, -2.0], [-2.0, -9.0]], requires_grad=True)
    mask = torch.tensor([[1, 1], [1, 0]])
    other = torch.tensor([[4.0, 2.0, 1.0, 4.0]], dtype=torch.float64)
    found = sampling_difference(sampled, trained, mask, lambda sums: torch.cat([sums, other]))
    k3 = [torch.tensor(d).expm1().item() - d for d in (-0.5, 0.0, 1.0)]
    assert found == pytest.approx(
        {
            "sampling/logp_difference": (0.5 + 0 + 1 + 4) / 4,
            "sampling/logp_difference_max": 4.0,
            "sampling/kl": (sum(k3) + 2) / 4,
        }
    )
    assert sampling_difference(sampled, trained, mask * 0, lambda sums: sums) == {}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(("changes", "logged"), [({}, [1, 2]), ({"train.num_iterations": 2}, [1])])
def test_the_difference_is_logged_while_the_weights_are_those_that_sampled(make_recipe, changes, logged):
    run = Run(make_recipe({"train.beta": 0.0, **changes}), FakeService(lambda row: row / 8))
    run.optimise()
    metrics = run.metrics()
    assert [row["step"] for row in metrics if "sampling/kl" in row] == logged
    for row in metrics[:1]:
        assert 0 <= row["sampling/logp_difference"] <= row["sampling/logp_difference_max"] < 1e-4
        assert abs(row["sampling/kl"]) < 1e-6


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_both_passes_train_alike(make_recipe, tmp_path):
    metrics = []
    for engine in ("fast", "plain"):
        changes = {"log_probs.engine": engine, "output_dir": str(tmp_path / engine), "train.beta": 0.1}
        run = Run(make_recipe(changes), FakeService(lambda row: row / 8))
        run.optimise()
        metrics.append(run.metrics())
    for own, other in zip(*metrics, strict=True):
        for key in ("loss", "kl", "entropy", "grad_norm"):
            assert own[key] == pytest.approx(other[key], rel=1e-3, abs=1e-5)
