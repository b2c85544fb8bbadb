"""The reward service on real Ray: numbers of the in-process backend, other processes, failures."""

import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from rewards import REWARD_NAMES
from rewards.custom import CustomRewardError
from rewards.deadlines import WorkerLimits
from rewards.ray_connection import RayUnavailableError
from rewards.ray_pending import QuietError
from rewards.ray_service import RayRewardService, ServiceAddress
from rewards.service import InlineRewardService
from rewards.worker import RolloutRig
from tests.rewards.rollouts import SETTINGS, flat_mesh, group, meshes, tiny_vae
from tests.rewards.rollouts import rig as random_rig

ROOT = Path(__file__).resolve().parents[2]
MESHES = [*meshes(6), flat_mesh("spoon")]
LIMITS = WorkerLimits(timeout_s=120, startup_timeout_s=600, max_restarts=1000)


@pytest.fixture(scope="module")
def skin_vae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policy") / "skin_vae"
    tiny_vae().save(path)
    return path


@pytest.fixture(scope="module")
def service(skin_vae):
    """One Ray for the module with two scoring workers, on any machine."""
    with pytest.MonkeyPatch.context() as patch:
        # A cluster named by the environment must not be joined (there is none at this address).
        patch.setenv("RAY_ADDRESS", "127.0.0.1:1")
        # Slots for a second service, on any machine.
        patch.setattr(os, "cpu_count", lambda: 4)
        service = RayRewardService(skin_vae, SETTINGS, workers=2, limits=LIMITS)
    try:
        service.prepare_meshes(MESHES)
        yield service
    finally:
        service.close()
    assert not ray.is_initialized()


@pytest.fixture(scope="module")
def inline() -> InlineRewardService:
    service = InlineRewardService(tiny_vae(), SETTINGS)
    service.prepare_meshes(MESHES)
    return service


def actor(service: RayRewardService, name: str):
    return ray.get_actor(name, namespace=service.address.namespace)


def run_in(handle, function):
    """Run a function in an actor's process and return its value."""
    return ray.get(handle.__ray_call__.remote(lambda self: function()), timeout=120)


class Blocked:
    """Keeps an actor busy until `release`, or until its process dies: it reads a pipe nobody writes to."""

    def __init__(self, handle, pipe: Path) -> None:
        os.mkfifo(pipe)
        self._pipe = str(pipe)
        path = self._pipe

        def wait(self) -> int:
            with open(path) as reader:
                return len(reader.read())

        self.pid = run_in(handle, os.getpid)
        self.reference = handle.__ray_call__.options(max_task_retries=0).remote(wait)
        # Opening to write waits for the reader: from here on the actor is inside `wait`.
        self._writer = open(self._pipe, "w")  # noqa: SIM115 (closed by `release`)

    def release(self) -> None:
        self._writer.close()


# ---------------------------------------------------------------- the same numbers


@pytest.mark.parametrize(
    ("mesh", "size", "invalid"),
    [(0, 1, 0.0), (1, 2, 0.0), (2, 3, 0.0), (3, 24, 0.3), (4, 7, 0.5), (5, 5, 0.0)],
)
def test_rewards_and_diagnostics_equal_the_in_process_ones(service, inline, mesh, size, invalid):
    rigs = group(mesh, size, invalid)
    found = service.submit(mesh, rigs, 11 + mesh).result()
    expected = inline.submit(mesh, rigs, 11 + mesh).result()
    assert found.scores == expected.scores  # to the last bit
    assert [score.valid for score in found.scores] == [rig is not None for rig in rigs]
    assert found.failure is None
    assert found.decode_seconds > 0
    assert found.score_seconds > 0


def test_many_groups_in_flight(service, inline):
    jobs = [(k % 6, group(k, 1 + k % 5, 0.2), k) for k in range(20)]
    pending = [service.submit(*job) for job in jobs]
    for job, scores in reversed(list(zip(jobs, pending, strict=True))):
        assert scores.result().scores == inline.submit(*job).result().scores


def test_the_callers_thread_count_does_not_matter(service, inline):
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    try:
        expected = inline.submit(1, group(8, 24), 3).result().scores
    finally:
        torch.set_num_threads(before)
    assert service.submit(1, group(8, 24), 3).result().scores == expected


def test_the_result_is_cached(service):
    pending = service.submit(0, group(0, 2), 0)
    assert pending.result() is pending.result()


def test_groups_without_a_valid_rig(service):
    assert service.submit(0, [], 0).result().scores == []
    result = service.submit(0, [None, None], 0).result()
    assert [score.rewards for score in result.scores] == [dict.fromkeys(REWARD_NAMES, 0.0)] * 2
    assert result.failure is None


# ---------------------------------------------------------------- workers


def test_every_worker_has_one_thread_and_only_the_decoder_has_torch(service):
    def process() -> tuple[dict[str, str | None], bool]:
        names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        return {name: os.environ.get(name) for name in names}, "torch" in sys.modules

    def torch_threads() -> int:
        import torch

        return torch.get_num_threads()

    decoder = actor(service, service.address.decoder)
    scorers = [actor(service, name) for name in service.address.scorers]
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    assert [run_in(scorer, process) for scorer in scorers] == [(one, False)] * 2
    assert run_in(decoder, process) == (one, True)
    assert run_in(decoder, torch_threads) == 1


def test_groups_go_to_all_scoring_workers(service):
    def scored() -> int:
        return 0

    assert len({run_in(actor(service, name), os.getpid) for name in service.address.scorers}) == 2
    service.submit(0, group(0, 4), 0).result()
    # Both have unpacked the mesh, so both have scored a chunk.
    for name in service.address.scorers:
        kept = ray.get(actor(service, name).__ray_call__.remote(lambda self: list(self._meshes._values)))
        assert MESHES[0].key in kept


# ---------------------------------------------------------------- meshes


def test_meshes_that_cannot_be_scored_are_reported_and_refused(service):
    reasons = service.prepare_meshes(MESHES)
    assert reasons == [None] * 6 + ["spoon: the mesh has no triangle with area; pass a surface mesh"]
    with pytest.raises(ValueError, match="mesh 6 cannot be scored: spoon: "):
        service.submit(6, group(0, 2), 0)
    with pytest.raises(IndexError, match="mesh 7 was not prepared; prepare it"):
        service.submit(7, group(0, 2), 0)


def test_meshes_prepared_later_replace_the_earlier_ones(service, inline):
    rigs = group(3, 4)
    before = service.submit(0, rigs, 5).result().scores
    try:
        assert service.prepare_meshes([MESHES[4], MESHES[0], MESHES[4]]) == [None] * 3
        after = [service.submit(k, rigs, 5).result().scores for k in range(3)]
    finally:
        service.prepare_meshes(MESHES)
    expected = [inline.submit(k, rigs, 5).result().scores for k in (4, 0, 4)]
    assert after == expected
    assert after[1] == before
    assert after[0] != before
    # The same name, faces and number of vertices, but moved: no cached result of the old mesh may be used.
    moved = replace(MESHES[0], vertices=MESHES[0].vertices * np.float32(0.5), points=MESHES[1].points)
    twin = InlineRewardService(tiny_vae(), SETTINGS)
    twin.prepare_meshes([moved])
    try:
        service.prepare_meshes([moved])
        assert service.submit(0, rigs, 5).result().scores == twin.submit(0, rigs, 5).result().scores != before
    finally:
        service.prepare_meshes(MESHES)


def test_meshes_are_not_prepared_twice(service, tmp_path, monkeypatch):
    # With every scoring worker busy, only meshes that need no work can be returned.
    blocked = [Blocked(actor(service, name), tmp_path / name) for name in service.address.scorers]
    monkeypatch.setattr(service, "limits", replace(LIMITS, timeout_s=0.05))
    try:
        assert service.prepare_meshes([MESHES[2], MESHES[1]]) == [None, None]
    finally:
        for worker in blocked:
            worker.release()
        service.prepare_meshes(MESHES)


# ---------------------------------------------------------------- other processes


def test_another_process_joins_and_gets_the_same_numbers(service, inline):
    script = """
import json, pickle, sys
from rewards.ray_service import RayRewardService, ServiceAddress
from tests.rewards.rollouts import group
from tests.rewards.test_ray_service import MESHES
service = RayRewardService.join(ServiceAddress(**json.loads(sys.argv[1])))
at_once = service.submit(3, group(5, 4, 0.3), 1).result().scores
reasons = service.prepare_meshes(MESHES)
again = service.submit(3, group(5, 4, 0.3), 1).result().scores
service.close()
sys.stdout.buffer.write(pickle.dumps((at_once, reasons, again)))
"""
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(asdict(service.address))],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        check=True,
    )
    at_once, reasons, again = pickle.loads(done.stdout)
    expected = inline.submit(3, group(5, 4, 0.3), 1).result().scores
    assert at_once == again == expected
    assert reasons[:6] == [None] * 6
    # The other process has left; the service still runs.
    assert service.submit(3, group(5, 4, 0.3), 1).result().scores == expected


def test_joining_in_the_same_process_leaves_ray_and_actors_alone(service):
    visitor = RayRewardService.join(service.address)
    assert (
        visitor.submit(0, group(0, 2), 0).result().scores == service.submit(0, group(0, 2), 0).result().scores
    )
    visitor.close()
    visitor.close()
    assert service.submit(0, group(0, 2), 0).result().failure is None


def test_joining_a_service_that_does_not_run(service):
    gone = replace(service.address, name="rewards-gone")
    with pytest.raises(
        RayUnavailableError,
        match=r"no reward service 'rewards-gone' is running at .*has exited: restart the job",
    ):
        RayRewardService.join(gone)
    assert ray.is_initialized()


# ---------------------------------------------------------------- failures


@pytest.mark.parametrize("role", ["decoder", "scorer"])
def test_a_worker_that_dies_is_replaced_and_the_group_scored(service, inline, tmp_path, role):
    name = service.address.decoder if role == "decoder" else service.address.scorers[0]
    blocked = Blocked(actor(service, name), tmp_path / "pipe")
    jobs = [(k, group(k, 6, 0.2), k) for k in range(3)]
    pending = [service.submit(*job) for job in jobs]  # they wait behind the blocked worker
    os.kill(blocked.pid, signal.SIGKILL)
    for job, scores in zip(jobs, pending, strict=True):
        assert scores.result().scores == inline.submit(*job).result().scores
        assert scores.result().failure is None
    assert run_in(actor(service, name), os.getpid) != blocked.pid


def test_a_group_that_gets_no_scores_in_time_has_none(service, inline, tmp_path, monkeypatch):
    # The decoder runs as many groups at once as there are scoring workers.
    decoder = actor(service, service.address.decoder)
    blocked = [Blocked(decoder, tmp_path / f"pipe{i}") for i in range(service.address.workers)]
    monkeypatch.setattr(service, "limits", replace(LIMITS, timeout_s=0.05))
    rigs = group(0, 5, invalid=0.4)
    pending = service.submit(0, rigs, 0)
    result = pending.result()
    assert result.failure == "no scores within 0.05 s"
    for rig, score in zip(rigs, result.scores, strict=True):
        # An invalid rollout is still the policy's fault.
        assert score.rewards == (dict.fromkeys(REWARD_NAMES, 0.0) if rig is None else None)
        assert not score.valid
    for task in blocked:
        task.release()
        ray.get(task.reference, timeout=120)
    monkeypatch.undo()
    assert pending.result() is result
    # The cancelled tasks delay nothing: in order, an actor would wait 30 s for each of them.
    monkeypatch.setattr(service, "limits", replace(LIMITS, timeout_s=25, retries=0))
    assert service.submit(0, rigs, 0).result().scores == inline.submit(0, rigs, 0).result().scores


def test_a_group_is_retried_after_a_time_out(service, inline, tmp_path, monkeypatch):
    blocked = Blocked(actor(service, service.address.scorers[1]), tmp_path / "pipe")
    start, attempts = service.start, []

    def start_and_release(*arguments):
        attempts.append(1)
        if len(attempts) == 2:
            blocked.release()
            service.limits = LIMITS
        return start(*arguments)

    monkeypatch.setattr(service, "start", start_and_release)
    monkeypatch.setattr(service, "limits", replace(LIMITS, timeout_s=0.05))
    rigs = group(1, 6)
    result = service.submit(2, rigs, 4).result()
    assert len(attempts) == 2
    assert result.failure is None
    assert result.scores == inline.submit(2, rigs, 4).result().scores


def test_tasks_of_a_cancelled_attempt_still_report_their_end(service, monkeypatch):
    def quiet(references):
        service.watch.fresh()  # time for tasks to begin
        raise QuietError("no scores")

    with monkeypatch.context() as patch:
        patch.setattr(service, "wait", quiet)
        for _ in range(10):
            assert service.submit(2, group(1, 6), 4).result().failure == "no scores"
    workers = [actor(service, name) for name in (*service.address.scorers, service.address.decoder)]
    for worker in workers:
        run_in(worker, lambda: None)  # after the cancelled tasks
    deadline = time.monotonic() + 20  # reports arrive on their own: less than `min_deadline_s`
    while (running := service.watch.fresh().running) and time.monotonic() < deadline:
        pass
    assert not running


def test_application_errors_reach_the_caller_and_are_not_retried(service, inline, monkeypatch):
    rig = group(0, 1)[0]
    assert rig is not None
    wrong = RolloutRig(rig.joints, rig.parents, np.concatenate([rig.codes, rig.codes]))
    start, attempts = service.start, []
    monkeypatch.setattr(service, "start", lambda *arguments: attempts.append(1) or start(*arguments))
    with pytest.raises(ValueError, match="weights"):
        service.submit(0, [wrong], 0).result()
    ragged = RolloutRig(rig.joints, rig.parents, rig.codes[:, :1])
    with pytest.raises(ValueError, match="dimensions"):  # in the decoder: the scorer only depends on it
        service.submit(0, [rig, ragged], 0).result()
    assert len(attempts) == 2


def test_a_mesh_that_cannot_be_prepared_in_time_is_reported(service, tmp_path, monkeypatch):
    blocked = [Blocked(actor(service, name), tmp_path / name) for name in service.address.scorers]
    monkeypatch.setattr(service, "limits", replace(LIMITS, timeout_s=0.05))
    new = replace(MESHES[0], name="giant")
    try:
        (reason,) = service.prepare_meshes([new])
        assert reason is not None
        assert reason.startswith("giant: no worker could prepare it (no scores within 0.05 s)")
    finally:
        for worker in blocked:
            worker.release()
        monkeypatch.undo()
        service.prepare_meshes(MESHES)


# ---------------------------------------------------------------- starting


def test_a_decoder_that_cannot_start(service, tmp_path):
    with pytest.raises(RayUnavailableError, match=r"could not start .*No such file.*nowhere"):
        RayRewardService(tmp_path / "nowhere", SETTINGS, workers=1)
    assert service.submit(0, group(0, 2), 0).result().failure is None


def test_a_bfloat16_decoder_scores_as_in_process(service, skin_vae):
    # Ray is already running: these actors stand beside the module's.
    lower = RayRewardService(skin_vae, SETTINGS, workers=1, limits=LIMITS, dtype="bfloat16")
    try:
        twin = InlineRewardService(tiny_vae(), SETTINGS, dtype="bfloat16")
        rigs = group(0, 3, 0.3)
        found = []
        for backend in (lower, twin):
            backend.prepare_meshes(meshes(1))
            found.append(backend.submit(0, rigs, 0).result())
        assert [score.rewards for score in found[0].scores] == [score.rewards for score in found[1].scores]
    finally:
        lower.close()


def test_a_users_own_rewards_run_in_the_workers(service, skin_vae, tmp_path, monkeypatch):
    """From a folder of this process that no worker runs in; a failure reaches the caller in one sentence."""
    (tmp_path / "rewards_of_a_user.py").write_text(
        "import os\n\n\n"
        "def moved(rig):\n"
        "    rig.rewards['five joints' if len(rig.joints) == 5 else 'coverage']\n"
        "    return float(abs(rig.posed - rig.vertices).mean())\n\n\n"
        f"def elsewhere(rig):\n    return float(os.getpid() != {os.getpid()})\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    places = ("rewards_of_a_user:moved", "rewards_of_a_user:elsewhere")
    settings = replace(SETTINGS, custom=places)
    # Ray is already running: this scorer stands beside the module's.
    own = RayRewardService(skin_vae, settings, workers=1, limits=LIMITS)
    try:
        twin = InlineRewardService(tiny_vae(), replace(SETTINGS, custom=places[:1]))
        rigs = [random_rig(np.random.default_rng(0), 3), None, random_rig(np.random.default_rng(1), 7)]
        found = []
        for backend in (own, twin):
            backend.prepare_meshes(meshes(1))
            found.append([score.rewards for score in backend.submit(0, rigs, 0).result().scores])
        assert [row.pop("elsewhere", 0.0) for row in found[0]] == [
            0.0 if rig is None else 1.0 for rig in rigs
        ]
        assert found[0] == found[1]
        with pytest.raises(
            CustomRewardError, match=r"user:moved failed .* \(KeyError: 'five joints', .*5\); fix"
        ):
            own.submit(0, [random_rig(np.random.default_rng(0), 5)], 1).result()
    finally:
        own.close()


def test_no_room_for_the_workers(service, skin_vae):
    # Ray is already running, with four slots.
    with pytest.raises(RayUnavailableError, match=r"no room for 8 scoring workers .* lower 'workers\.count'"):
        RayRewardService(skin_vae, SETTINGS, workers=8, limits=replace(LIMITS, startup_timeout_s=0.2))
    assert service.submit(0, group(0, 2), 0).result().failure is None


def test_an_address_without_a_cluster_is_refused_at_once():
    script = """
import sys
from pathlib import Path
from rewards.ray_service import *
try:
    RayRewardService(Path("unused"), RewardSettings(), address=sys.argv[1])
except RayUnavailableError as error:
    print(error)
"""
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    # Nothing listens there any more.
    done = subprocess.run(
        [sys.executable, "-c", script, address], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"Ray at '{address}' could not be reached (")
    assert done.stdout.strip().endswith("check 'ray.address'")


def test_the_address_is_plain_data(service):
    assert ServiceAddress(**json.loads(json.dumps(asdict(service.address)))) == service.address
