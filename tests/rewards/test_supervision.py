"""Supervision of workers without Ray and with a clock of its own: deadlines, blame, quarantine, budgets."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards.deadlines import WorkerLimits
from rewards.supervision import Supervision, WorkerProcess

LIMITS = WorkerLimits(
    timeout_s=100, min_deadline_s=10, startup_timeout_s=50, max_restarts=5, max_quarantined=2
)


class Scene:
    """Workers that report what a test says, at times that it says."""

    def __init__(self, *names: str, limits: WorkerLimits = LIMITS, quarantined=()) -> None:
        self.now = 0.0
        self.books = Supervision(limits, quarantined, clock=lambda: self.now)
        self.books.expect(f"mesh{k}" for k in range(10))
        self.books.add_workers(names)
        self.pids = dict.fromkeys(names, 0)
        for name in names:
            self.start(name)

    def process(self, name: str) -> WorkerProcess:
        return WorkerProcess("node", self.pids[name], 0.0)

    def start(self, name: str) -> None:
        self.pids[name] += 1
        self.books.alive(name, self.process(name))

    def die(self, name: str) -> None:
        """It is gone and has been restarted."""
        self.books.gone(name, self.process(name))
        self.start(name)

    def begin(self, name: str, mesh: str, kind="score", units: int = 100):
        return self.books.begin(name, self.process(name), kind, mesh, mesh, units)

    def end(self, name: str, permit) -> None:
        self.books.end(name, self.process(name), permit.token)

    def overdue(self, **unanswered: float) -> list[str]:
        return self.books.overdue(unanswered)

    @property
    def status(self):
        return self.books.status()


def test_the_first_task_gets_the_whole_time_and_later_ones_follow_it():
    scene = Scene("a")
    first = scene.begin("a", "mesh0", units=100)
    scene.now = 100
    assert scene.overdue() == []
    scene.now = 100.1
    assert scene.overdue() == ["a"]
    assert scene.overdue() == []  # once
    assert scene.status.hung == 1
    scene.now = 116
    assert scene.overdue() == ["a"]  # it would not die
    scene.die("a")
    assert (scene.status.restarts, scene.status.hung) == (1, 1)
    scene.end("a", first)  # of the old process: forgotten
    second = scene.begin("a", "mesh1", units=100)
    scene.now += 2
    scene.end("a", second)
    scene.begin("a", "mesh2", units=100)  # ten times 2 s
    scene.now += 19.9
    assert scene.overdue() == []
    scene.now += 0.2
    assert scene.overdue() == ["a"]
    assert "it hung scoring rigs of 'mesh0', after 100 s" in scene.status.messages[0]


def test_waiting_in_a_queue_is_nobodys_fault():
    """mesh1 waits behind mesh0 on the same worker: its time starts when it does."""
    scene = Scene("a")
    permit = scene.begin("a", "mesh0")
    scene.now = 99
    scene.end("a", permit)
    scene.begin("a", "mesh1")
    scene.now = 190
    assert scene.overdue() == []


def test_a_busy_worker_need_not_answer_but_an_idle_one_must():
    scene = Scene("a", "b")
    scene.begin("a", "mesh0")
    scene.now = 20
    assert scene.overdue(a=0.0, b=0.0) == ["b"]
    assert scene.overdue(a=0.0) == []
    scene.die("b")
    assert scene.status.struck == {}
    assert scene.status.messages == ("b is replaced: it hung while idle: no answer for 10 s",)


def test_a_worker_that_does_not_come_back_is_killed_again():
    scene = Scene("a")
    scene.books.gone("a", scene.process("a"))
    scene.now = 50
    assert scene.overdue() == []
    scene.now = 50.1
    assert scene.overdue() == ["a"]
    assert scene.overdue() == []  # it has another 50 s
    assert (scene.status.restarts, scene.status.hung) == (2, 1)


def test_old_news_of_a_replaced_process_changes_nothing():
    scene = Scene("a")
    old = scene.process("a")
    scene.die("a")
    scene.begin("a", "mesh0")
    before = scene.status
    scene.books.gone("a", old)
    scene.books.alive("a", old)
    scene.books.gone("a", None)
    assert scene.status == before


@pytest.mark.parametrize("noticed", [True, False])
def test_a_mesh_that_kills_twice_is_quarantined(noticed):
    """The next process may begin work before anyone saw the last one die."""
    scene = Scene("a", "b")
    for worker in ("a", "b"):
        assert scene.begin(worker, "mesh3").verdict == "go"
        if noticed:
            scene.books.gone(worker, scene.process(worker))
        scene.pids[worker] += 1
        permit = scene.begin(worker, "mesh4")
        assert permit.verdict == "go"
        scene.end(worker, permit)
    (entry,) = scene.status.quarantined
    assert (entry.name, entry.stage) == ("mesh3", "score")
    assert entry.reasons == ("a: it died scoring rigs of 'mesh3'", "b: it died scoring rigs of 'mesh3'")
    refused = scene.begin("a", "mesh3")
    assert refused.verdict == "quarantined"
    assert "'mesh3' is quarantined: it stopped 2 workers" in refused.reason
    assert scene.begin("a", "mesh4").verdict == "go"
    assert scene.status.restarts == 2


def test_a_mesh_that_was_scored_in_between_is_not():
    scene = Scene("a")
    for _ in range(4):
        scene.begin("a", "mesh0")
        scene.die("a")
        assert scene.status.struck == {"mesh0": 1}
        scene.books.scored("mesh0")
    assert scene.status.quarantined == ()


def test_of_several_at_once_the_one_to_blame_is_found_alone():
    """A decoder works on three meshes in one process and dies. Each then has it for itself."""
    scene = Scene("d")
    for mesh in ("mesh0", "mesh1", "mesh2"):
        assert scene.begin("d", mesh, "decode").verdict == "go"
    scene.die("d")
    assert scene.status.struck == {}
    alone = scene.begin("d", "mesh0", "decode")
    assert scene.begin("d", "mesh1", "decode").verdict == "later"
    assert scene.begin("d", "mesh5", "decode").verdict == "later"
    scene.end("d", alone)  # cleared
    assert scene.begin("d", "mesh1", "decode").verdict == "go"
    scene.die("d")  # it was mesh1
    assert [mesh.name for mesh in scene.status.quarantined] == ["mesh1"]
    alone = scene.begin("d", "mesh2", "decode")
    scene.end("d", alone)
    permits = [scene.begin("d", mesh, "decode").verdict for mesh in ("mesh0", "mesh2", "mesh4")]
    assert permits == ["go"] * 3


def test_a_suspect_gets_its_turn_though_others_keep_coming():
    scene = Scene("d")
    for mesh in ("mesh0", "mesh1"):
        scene.begin("d", mesh, "decode")
    scene.die("d")
    scene.end("d", scene.begin("d", "mesh1", "decode"))
    running = scene.begin("d", "mesh4", "decode")
    assert scene.begin("d", "mesh0", "decode").verdict == "later"
    assert scene.begin("d", "mesh5", "decode").verdict == "later"  # behind the suspect
    scene.end("d", running)
    assert scene.begin("d", "mesh5", "decode").verdict == "later"
    suspect = scene.begin("d", "mesh0", "decode")
    assert suspect.verdict == "go"
    scene.end("d", suspect)
    assert scene.begin("d", "mesh5", "decode").verdict == "go"


def test_a_suspect_that_never_asks_again_holds_nobody_up():
    scene = Scene("d")
    for mesh in ("mesh0", "mesh1"):
        scene.begin("d", mesh, "decode")
    scene.die("d")
    running = scene.begin("d", "mesh4", "decode")
    assert scene.begin("d", "mesh0", "decode").verdict == "later"
    scene.end("d", running)
    scene.now += 6
    assert scene.begin("d", "mesh5", "decode").verdict == "go"


def test_of_several_at_once_only_the_late_one_is_blamed_for_hanging():
    scene = Scene("d")
    scene.begin("d", "mesh0", "decode")
    scene.now = 60
    scene.begin("d", "mesh1", "decode")
    scene.now = 101
    assert scene.overdue() == ["d"]
    scene.die("d")
    assert scene.status.struck == {"mesh0": 1}


def test_restarts_are_bounded():
    scene = Scene("a", limits=replace(LIMITS, max_restarts=2))
    for _ in range(2):
        scene.die("a")
    assert scene.status.failure is None
    scene.die("a")
    assert "replaced 3 times, more than 'workers.max_restarts' (2) allows" in scene.status.failure


def test_quarantined_meshes_are_bounded():
    scene = Scene("a", limits=replace(LIMITS, max_restarts=100))
    for count, mesh in enumerate(("mesh0", "mesh1", "mesh2")):
        assert scene.status.failure is None
        assert len(scene.status.quarantined) == count
        for _ in range(2):
            scene.begin("a", mesh)
            scene.die("a")
    assert "3 of 10 meshes are quarantined (mesh0, mesh1, mesh2)" in scene.status.failure
    assert "'data.max_quarantined' (2)" in scene.status.failure
    # A resumed run starts with them, and counts them as soon as it knows that they are among its meshes.
    resumed = Supervision(LIMITS, scene.status.quarantined)
    assert resumed.status().failure is None
    resumed.expect(["mesh0", "other"])
    assert resumed.status().failure is None
    resumed.expect(["mesh1", "mesh2"])
    assert "3 of 4 meshes" in resumed.status().failure


def test_no_mesh_left_stops_the_run_whatever_the_budget():
    scene = Supervision(replace(LIMITS, max_quarantined=0.5), Scene("a").status.quarantined)
    scene.add_workers(["a"])
    scene.expect(["mesh0"])
    for pid in range(3):
        scene.begin("a", WorkerProcess("node", pid, 0.0), "prepare", "mesh0", "mesh0", 1)
    assert "1 of 1 meshes are quarantined (mesh0)" in scene.status().failure


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 4), st.floats(0, 9)), max_size=60))
def test_a_healthy_run_is_left_alone(tasks):
    """Whatever the order and times of tasks, none above the shortest deadline: nothing is counted."""
    scene = Scene("a", "b")
    for worker, mesh, seconds in tasks:
        permit = scene.begin(worker, f"mesh{mesh}")
        assert permit.verdict == "go"
        scene.now += seconds
        assert scene.overdue() == []
        scene.end(worker, permit)
    status = scene.status
    assert (status.restarts, status.hung, status.quarantined, status.struck) == (0, 0, (), {})
    assert (status.failure, status.running, status.messages) == (None, 0, ())
