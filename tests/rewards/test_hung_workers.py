"""Workers that hang or die on purpose, on real Ray: replaced, scored again, quarantined; budgets; closing."""

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import ray
import ray.exceptions

from rewards.deadlines import WorkerLimits
from rewards.quarantine import QuarantineFile
from rewards.ray_connection import RayUnavailableError
from rewards.ray_service import RayRewardService
from rewards.service import InlineRewardService
from tests.rewards.faults import faulty_mesh, faulty_settings, plan, planned
from tests.rewards.rollouts import SETTINGS, group, meshes, tiny_vae

MESHES = meshes(3)
# Deadlines short enough for a test, and long enough for a busy machine: these tasks take milliseconds.
LIMITS = WorkerLimits(
    timeout_s=9, min_deadline_s=6, startup_timeout_s=600, max_restarts=1000, max_quarantined=1000
)


@pytest.fixture(scope="module")
def skin_vae(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("policy") / "skin_vae"
    tiny_vae().save(path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Planned faults of scoring; the services of this module share it."""
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def service(skin_vae, folder, tmp_path_factory):
    listed = QuarantineFile(tmp_path_factory.mktemp("run") / "quarantine.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "cpu_count", lambda: 6)  # room for the further services
        service = RayRewardService(
            skin_vae, faulty_settings(folder), workers=2, limits=LIMITS, quarantine=listed
        )
    yield service
    service.close()


@pytest.fixture
def prepared(service):
    service.prepare_meshes(MESHES)
    return service


@pytest.fixture(scope="module")
def inline() -> InlineRewardService:
    service = InlineRewardService(tiny_vae(), SETTINGS)
    service.prepare_meshes(MESHES)
    return service


def pid_of(service, worker: str) -> int:
    return ray.get(service._workers()[worker].pulse.remote(), timeout=60).pid


# ---------------------------------------------------------------- replaced, and the same numbers


@pytest.mark.parametrize("fault", ["stop", "spin", "exit"])
def test_a_scorer_that_stops_in_the_middle_of_a_group(prepared, inline, folder, fault, capfd):
    seed = {"stop": 101, "spin": 102, "exit": 103}[fault]
    plan(folder, f"score-{seed}", fault)
    before = prepared.health()
    result = prepared.submit(0, group(1, 6, 0.2), seed).result()
    assert planned(folder, f"score-{seed}") == 0
    assert result.scores == inline.submit(0, group(1, 6, 0.2), seed).result().scores
    assert result.failure is None
    after = prepared.health()
    assert after.restarts == before.restarts + 1
    assert after.hung - before.hung == (fault != "exit")
    assert after.quarantined == before.quarantined
    said = "it died" if fault == "exit" else "it hung"
    assert f"is replaced: {said} scoring rigs of '{MESHES[0].name}'" in capfd.readouterr().err


@pytest.mark.parametrize("worker", ["decoder", "scorer-1"])
def test_an_idle_worker_that_was_stopped_is_replaced(prepared, inline, worker, capfd):
    before, pid = prepared.health(), pid_of(prepared, worker)
    os.kill(pid, signal.SIGSTOP)
    jobs = [(k, group(k, 6, 0.2), k) for k in range(3)]
    pending = [prepared.submit(*job) for job in jobs]
    for job, scores in zip(jobs, pending, strict=True):
        assert scores.result().scores == inline.submit(*job).result().scores
    after = prepared.health()
    assert (after.hung - before.hung, after.quarantined) == (1, before.quarantined)
    assert pid_of(prepared, worker) != pid
    assert f"{worker} is replaced: it hung while idle" in capfd.readouterr().err


def test_a_mesh_that_hangs_the_decoder_once(service, tmp_path, inline):
    """Others are decoded beside it by the same process: they are scored again, and not blamed."""
    bad = faulty_mesh(MESHES[0], tmp_path)
    service.prepare_meshes([bad, *MESHES])
    plan(tmp_path, "decode", "spin")
    jobs = [(k, group(k, 5), k) for k in range(4)]
    pending = [service.submit(*job) for job in jobs]
    found = [scores.result() for scores in pending]
    assert [result.failure for result in found] == [None] * 4
    for (mesh, rigs, seed), result in list(zip(jobs, found, strict=True))[1:]:
        assert result.scores == inline.submit(mesh - 1, rigs, seed).result().scores
    assert found[0].scores == inline.submit(0, *jobs[0][1:]).result().scores
    assert bad.key not in service.watch.fresh().struck  # scored since


# ---------------------------------------------------------------- quarantine


def test_a_mesh_that_kills_two_workers_is_quarantined(service, inline, tmp_path, capfd):
    bad = faulty_mesh(MESHES[1], tmp_path, "killer")
    service._quarantine_file.step = 7
    service.prepare_meshes([MESHES[0], replace(MESHES[2])])
    known = len(service.watch.status.quarantined)
    service.prepare_meshes([MESHES[0], bad, MESHES[2]])
    plan(tmp_path, "decode", *["exit"] * 9)
    rigs = group(3, 4, 0.3)
    jobs = [(0, group(1, 4), 1), (1, rigs, 2), (2, group(2, 4), 3)]
    pending = [service.submit(*job) for job in jobs]
    found = [scores.result() for scores in pending]
    # Invalid rigs stay the policy's fault; all others have no score.
    assert [score.rewards for score in found[1].scores] == [
        None if rig is not None else dict.fromkeys(SETTINGS.reward_names, 0.0) for rig in rigs
    ]
    assert found[1].quarantined
    assert "'killer' is quarantined: it stopped 2 workers (" in found[1].failure
    for k in (0, 2):
        assert found[k].scores == inline.submit(*jobs[k]).result().scores
    (entry,) = service.watch.status.quarantined[known:]
    assert (entry.name, entry.stage, len(entry.reasons), len(entry.times)) == ("killer", "decode", 2, 2)
    written = json.loads(service._quarantine_file.path.read_text())["meshes"][-1]
    assert (written["name"], written["key"], written["step"]) == ("killer", bad.key, 7)
    assert "'killer' is quarantined" in capfd.readouterr().err
    # No worker touches it again, and its rigs have no score at once.
    before, left = service.health(), planned(tmp_path, "decode")
    again = service.submit(1, rigs, 9).result()
    assert again.quarantined
    assert [score.rewards for score in again.scores] == [score.rewards for score in found[1].scores]
    assert (service.health(), planned(tmp_path, "decode")) == (before, left)


def test_a_quarantined_mesh_stays_so_after_a_resume(service, skin_vae, folder, tmp_path):
    """In a service of its own, as a resumed run has; the list is the one that the other service wrote."""
    bad = faulty_mesh(MESHES[2], tmp_path, "hangs twice")
    refused = service.prepare_meshes([MESHES[0], bad])
    assert refused == [None, None]
    plan(tmp_path, "prepare", "exit", "exit")
    other = faulty_mesh(MESHES[2], tmp_path, "cannot be prepared")
    (_, reason) = service.prepare_meshes([MESHES[0], other])
    assert reason.startswith("cannot be prepared: 'cannot be prepared' is quarantined: it stopped 2 workers")
    plan(tmp_path, "decode", "exit", "exit")
    service.prepare_meshes([MESHES[0], bad])
    assert service.submit(1, group(0, 2), 0).result().quarantined
    listed = QuarantineFile(service._quarantine_file.path)
    resumed = RayRewardService(skin_vae, faulty_settings(folder), workers=1, limits=LIMITS, quarantine=listed)
    try:
        reasons = resumed.prepare_meshes([MESHES[0], bad, other])
        # What could be prepared keeps its place in the order of the run.
        assert reasons[:2] == [None, None]
        assert "'cannot be prepared' is quarantined" in reasons[2]
        result = resumed.submit(1, group(0, 2), 0).result()
        assert (result.quarantined, [score.rewards for score in result.scores]) == (True, [None] * 2)
        assert resumed.submit(0, group(0, 2), 0).result().failure is None
        assert resumed.health().restarts == 0
    finally:
        resumed.close()


# ---------------------------------------------------------------- budgets, starting and closing


def test_restarts_are_bounded_and_closing_with_stopped_workers_takes_seconds(service, skin_vae, folder):
    limits = replace(LIMITS, max_restarts=1, min_deadline_s=100)  # the stopped workers stay
    frail = RayRewardService(skin_vae, faulty_settings(folder), workers=1, limits=limits)
    try:
        frail.prepare_meshes(MESHES)
        plan(folder, "score-201", "exit")
        assert frail.submit(0, group(0, 2), 201).result().failure is None  # one is allowed
        plan(folder, "score-202", "exit")
        last = frail.submit(0, group(0, 2), 202)
        with pytest.raises(
            RayUnavailableError,
            match=r"replaced 2 times, more than 'workers\.max_restarts' \(1\) allows .* resume from the last",
        ):
            last.result()
        with pytest.raises(RayUnavailableError, match=r"workers\.max_restarts"):
            frail.submit(0, group(0, 2), 203)
        assert service.watch.status.failure is None  # the services stand beside each other
        pid = pid_of(frail, "decoder")  # the scorer is dead for good
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
    finally:
        frail.close()
    assert time.monotonic() - began < 10
    # Ray gives a process 5 s to exit by itself.
    left = [psutil.Process(pid)] if psutil.pid_exists(pid) else []
    assert not psutil.wait_procs(left, 60)[1]


def test_without_retries_a_group_whose_mesh_stops_a_worker_has_no_scores(
    prepared, folder, inline, monkeypatch
):
    monkeypatch.setattr(prepared, "limits", replace(LIMITS, retries=0))
    plan(folder, "score-301", "exit")
    bad, behind = prepared.submit(0, group(0, 2), 301), prepared.submit(1, group(1, 6), 302)
    result = bad.result()
    assert [score.rewards for score in result.scores] == [None, None]
    assert result.failure.startswith("Actor")  # Ray's first error, not the ones it caused
    assert "\n" not in result.failure
    assert not result.quarantined
    # What only waited in the queue is scored all the same.
    assert behind.result().scores == inline.submit(1, group(1, 6), 302).result().scores


def test_a_start_that_is_no_longer_needed_gives_up(service, skin_vae):
    abandon = threading.Event()
    abandon.set()
    with pytest.raises(RayUnavailableError, match="no longer needed"):
        RayRewardService(skin_vae, SETTINGS, workers=9, limits=LIMITS, abandon=abandon)


def test_a_full_object_store_is_reported(prepared, monkeypatch):
    def full(value):
        raise ray.exceptions.ObjectStoreFullError("the local object store is full")

    monkeypatch.setattr(ray, "put", full)
    with pytest.raises(
        RayUnavailableError, match=r"mesh 'new' could not be stored: .* full; .*--object-store-memory"
    ):
        prepared.prepare_meshes([replace(MESHES[0], name="new")])
