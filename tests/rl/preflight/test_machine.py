"""Checks of the machine (versions, CUDA build, threads, GPU, disk, Ray, W&B), with each failure injected."""

import socket
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from rl.preflight import at_start
from rl.preflight.at_start import check_start
from rl.preflight.disk import DiskNeed, disk_finding, disk_need, existing_parent
from rl.preflight.finding import Finding, in_bytes, in_time, ok
from rl.preflight.gpu import Device, device_findings, host_memory_finding, memory_finding
from rl.preflight.launch import Launch
from rl.preflight.memory_need import MemoryNeed
from rl.preflight.model_size import model_size
from rl.preflight.ray_start import cluster_finding, local_finding
from rl.preflight.reporting import reports_to_wandb, wandb_finding
from rl.preflight.threads import thread_finding, threads_per_process, usable_cores
from rl.preflight.versions import cuda_finding, requirements, version_findings

GIB = 1 << 30
H100 = Device("cuda", "NVIDIA H100", 1, 78 * GIB, 80 * GIB)


def level(finding: Finding | None) -> str | None:
    return finding and finding.level


# ------------------------------------------------------------------ versions


def test_this_environment_meets_the_requirements():
    (found,) = version_findings(requirements())
    assert found.level == "ok"
    assert "trl 1.16.0" in found.text
    assert any(str(requirement) == "trl==1.16.0" for requirement in requirements())


@pytest.mark.parametrize(
    ("installed", "expected"),
    [
        ("1.15.0", "trl 1.15.0 is installed, but tokenrig-rl needs trl==1.16.0; pip install 'trl==1.16.0'"),
        (None, "trl is not installed, but tokenrig-rl needs trl==1.16.0; pip install 'trl==1.16.0'"),
    ],
)
def test_a_wrong_version_is_a_problem(installed, expected):
    (found,) = version_findings([Requirement("trl==1.16.0")], lambda name: installed)
    assert (found.level, found.text) == ("problem", expected)


def test_old_torch_trains_but_reads_no_ckpt():
    def installed(name):
        return "2.9.1+cu128" if name == "torch" else "1.16.0"

    (found,) = version_findings([Requirement("torch>=2.8"), Requirement("trl==1.16.0")], installed)
    assert found.level == "warning"
    assert "torch 2.9.1+cu128" in found.text


@pytest.mark.parametrize(
    ("build", "usable", "driver", "expected"),
    [
        (None, False, None, None),  # a machine without a GPU
        ("13.0", True, "580.1", None),
        (None, False, "580.1", "warning"),  # a CPU build beside a GPU
        ("13.0", False, "470.2", "problem"),  # the driver is too old
    ],
)
def test_the_cuda_build_matches_the_driver(build, usable, driver, expected):
    assert level(cuda_finding(build, usable, driver)) == expected


# ------------------------------------------------------------------ threads


@pytest.mark.parametrize(
    ("launch", "cores", "weights", "expected"),
    [
        (Launch(2, 2, threads=1), 2, 4e6, ("ok", "2 processes x 1 thread on 2 cores")),
        (Launch(threads=2), 2, 4e6, ("warning", "OMP_NUM_THREADS=1 and start 2 processes")),
        (Launch(threads=2), 2, 4e8, ("ok", "1 process x 2 threads")),  # large products use both
        (Launch(4, 4, threads=2), 4, 4e8, ("warning", "set OMP_NUM_THREADS=1")),
        (Launch(8, 8), 4, 4e8, ("warning", "launch at most 4 processes")),
    ],
)
def test_threads_against_cores(make_recipe, launch, cores, weights, expected):
    found = thread_finding(make_recipe(), launch, cores, False, int(weights))
    assert found.level == expected[0]
    assert expected[1] in found.text


def test_scoring_workers_against_cores(make_recipe):
    recipe = make_recipe({"workers": {"backend": "ray", "count": 8}})
    assert "workers.count=4" in thread_finding(recipe, Launch(threads=1), 4, True, None).text


def test_cores_of_a_container(tmp_path):
    limit = tmp_path / "cpu.max"
    everything = usable_cores(limit)
    limit.write_text("max 100000\n")
    assert usable_cores(limit) == everything
    limit.write_text("100000 100000\n")
    assert usable_cores(limit) == 1
    assert threads_per_process(Launch(2, 2), 8) == 4


# ------------------------------------------------------------------ GPU and memory


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "ok"),
        ({"workers.decoder_device": "cuda"}, "problem"),
        ({"train.bf16": True}, "warning"),
        ({"train.fp16": True}, "problem"),
    ],
)
def test_without_a_gpu(make_recipe, changes, expected):
    (found,) = device_findings(make_recipe(changes), Device("cpu"), 1, 16)
    assert found.level == expected


def test_a_gpu_without_bfloat16_and_too_few_gpus(make_recipe):
    recipe = make_recipe({"train.bf16": True})
    old = Device("cuda", "Tesla V100", 1, 15 * GIB, 16 * GIB, bf16=False)
    assert [found.level for found in device_findings(recipe, old, 1, None)] == ["ok", "problem"]
    assert [found.level for found in device_findings(recipe, H100, 2, None)] == ["problem", "ok"]


@pytest.mark.parametrize(
    ("fixed", "peak", "expected"),
    [(10, 60, "ok"), (10, 75, "warning"), (10, 100, "problem"), (79, 0, "problem")],
)
def test_gpu_memory_against_what_is_free(fixed, peak, expected):
    found = memory_finding(MemoryNeed({"weights": fixed * GIB}, {"activations": peak * GIB}), H100)
    assert found.level == expected
    assert "78 GiB free" in found.text


def test_gpu_memory_is_estimated_without_a_gpu_too():
    found = memory_finding(MemoryNeed({"weights": GIB}, {"activations": 99 * GIB}), Device("cpu"))
    assert found.level == "ok"
    assert "100 GiB" in found.text


def test_host_memory():
    assert [host_memory_finding(need * GIB, 10 * GIB).level for need in (9, 11, 14)] == [
        "ok",
        "warning",
        "problem",
    ]


# ------------------------------------------------------------------ disk


def test_disk_space_counts_one_checkpoint_more_than_are_kept(make_recipe):
    recipe = make_recipe({"train.max_steps": 10, "train.save_total_limit": 2})
    need = disk_need(recipe, model_size(recipe.policy))
    assert need.checkpoints == 3
    assert (
        disk_need(
            make_recipe({"train.max_steps": 2, "train.save_steps": 2}), model_size(recipe.policy)
        ).checkpoints
        == 2
    )
    least = need.total - 100
    assert disk_finding(need, 0, 2 * need.total, Path("run")).level == "ok"
    assert disk_finding(need, 0, need.total, Path("run")).level == "warning"
    short = disk_finding(need, 0, least, Path("run"))
    assert short.level == "problem"
    assert "needed in run" in short.text
    assert "100 B too little" in short.text
    # What an earlier run wrote is replaced.
    assert disk_finding(need, 200, least, Path("run")).level != "problem"


def test_disk_space_counts_the_best_policy_and_kept_rollouts(make_recipe):
    recipe = make_recipe()
    size = model_size(recipe.policy)
    watched = make_recipe({"eval.every": 5, "report.every": 5, "report.max_megabytes": 7})
    plain, more = disk_need(recipe, size), disk_need(watched, size)
    assert more.total - plain.total == 2 * plain.policy + (7 << 20)
    short = disk_finding(more, 0, 100, Path("run")).text
    assert ", kept rollouts 7 MiB), 100 B free" in short
    assert short.endswith("or lower train.save_total_limit or report.max_megabytes")


def test_the_estimate_is_what_a_run_writes(here, make_recipe, tmp_path):
    changes = {"eval.before_and_after": False, "train.max_steps": 1}
    assert here(changes) == 0
    need = disk_need(make_recipe(changes), model_size(make_recipe().policy))
    small = 1 << 20  # of which the estimate has one, and the tiny run nearly nothing
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-1"
    weights = sum((checkpoint / name).stat().st_size for name in ("model.safetensors", "optimizer.pt"))
    assert need.checkpoint - small == pytest.approx(weights, rel=0.1)


def test_the_nearest_folder_that_exists(tmp_path):
    assert existing_parent(tmp_path / "a" / "b") == tmp_path


# ------------------------------------------------------------------ Ray


def test_a_local_ray(make_recipe, monkeypatch):
    recipe = make_recipe({"workers": {"backend": "ray", "count": 2}})
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    assert local_finding(recipe, 8 * GIB, 0.5).level == "ok"
    assert "shm-size" in local_finding(recipe, 64 << 20, 0.5).text
    assert "97% full" in local_finding(recipe, 8 * GIB, 0.97).text
    monkeypatch.setenv("RAY_TMPDIR", "/" + "x" * 200)
    found = local_finding(recipe, 8 * GIB, 0.5)
    assert found.level == "problem"
    assert "RAY_TMPDIR" in found.text


def test_room_in_a_cluster(make_recipe):
    recipe = make_recipe({"workers": {"backend": "ray", "count": 4, "decoder_device": "cuda"}})
    assert cluster_finding(recipe, {"CPU": 8.0, "GPU": 1.0}).level == "ok"
    assert "workers.count=2" in cluster_finding(recipe, {"CPU": 2.0, "GPU": 1.0}).text
    assert "no free GPU" in cluster_finding(recipe, {"CPU": 8.0}).text


# ------------------------------------------------------------------ W&B


def test_wandb_offline_needs_nothing():
    assert wandb_finding({"WANDB_MODE": "offline"}).level == "ok"


def test_wandb_needs_a_server_and_a_login(tmp_path):
    login = tmp_path / "netrc"
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        environment = {"WANDB_BASE_URL": f"http://127.0.0.1:{port}", "NETRC": str(login)}
        assert "no login" in wandb_finding(environment).text
        login.write_text("machine 127.0.0.1 login user password key\n")
        assert wandb_finding(environment).level == "ok"
    found = wandb_finding(environment)
    assert found.level == "problem"
    assert "WANDB_MODE=offline" in found.text


@pytest.mark.parametrize(("report_to", "expected"), [("none", False), ("wandb", True), (["wandb"], True)])
def test_which_recipes_report_to_wandb(make_recipe, report_to, expected):
    assert reports_to_wandb(make_recipe({"train.report_to": report_to})) is expected


# ------------------------------------------------------------------ the start of training


def test_a_hopeless_run_is_refused_before_it_writes(here, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(at_start, "free_bytes", lambda path: 1000)
    assert here() == 2
    assert "too little" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_healthy_start_prints_nothing(make_recipe, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    check_start(make_recipe())
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "999")
    check_start(make_recipe())
    assert capsys.readouterr().err.startswith("warning: threads: 1 process x 999 threads")
    monkeypatch.setenv("RANK", "1")  # the main process checks for all
    check_start(make_recipe())
    assert capsys.readouterr() == ("", "")


def test_lines_and_numbers():
    assert str(ok("disk", "free")) == "ok       disk           free"
    assert [in_bytes(size) for size in (12, 5 << 20, 3 * GIB // 2)] == ["12 B", "5 MiB", "1.5 GiB"]
    assert [in_time(seconds) for seconds in (5.21, 240, 7200)] == ["5.2 s", "4 min", "2.0 h"]
    assert DiskNeed(10, 3, 5, 4, 1).total == 40
