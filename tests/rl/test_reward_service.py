"""Starting the reward service: in the background, refused devices and dtypes, failures, closing."""

import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

import rewards.ray_service
from data.command_line import RunFailedError
from data.typed_recipe import RecipeError
from rewards.ray_connection import RayUnavailableError
from rewards.service import InlineRewardService
from rl.reward_service import ServiceStart, reward_service, starting_service
from tests.rl.commands import ROOT, TIMEOUT

RAY = {"workers": {"backend": "ray", "count": 3}}


@pytest.mark.parametrize("device", ["quantum", "cuda:99"])
def test_devices_that_are_not_there(make_recipe, policy, device):
    with (
        pytest.raises(RecipeError, match=r"workers\.decoder_device"),
        reward_service(make_recipe({"workers.decoder_device": device}), policy),
    ):
        pass


class FakeRay:
    """In place of `RayRewardService`: waits until `ready`, then fails with `error` if there is one."""

    def __init__(self) -> None:
        self.ready, self.error = threading.Event(), None
        self.started, self.closed = [], 0

    def __call__(self, skin_vae, settings, **options):
        self.started.append(options["workers"])
        self.thread = threading.current_thread()
        assert self.ready.wait(60)
        if self.error is not None:
            raise self.error
        return self

    def close(self) -> None:
        assert self.thread.is_alive()  # a local Ray dies with the thread that started it
        self.closed += 1


@pytest.fixture
def ray(monkeypatch):
    fake = FakeRay()
    monkeypatch.setattr(rewards.ray_service, "RayRewardService", fake)
    yield fake
    fake.ready.set()


def test_ray_starts_in_the_background_and_once(make_recipe, policy, ray):
    with starting_service(make_recipe(RAY)) as start:  # not ready yet, and nothing waits for it
        start.begin()
        ray.ready.set()
        assert start.service(policy) is start.service(policy) is ray
        assert ray.closed == 0
    assert (ray.started, ray.closed) == ([3], 1)
    assert not ray.thread.is_alive()


def test_a_failed_start_is_reported_when_the_service_is_needed(make_recipe, policy, ray):
    ray.error = RayUnavailableError("no room for 3 scoring workers")
    ray.ready.set()
    with (
        pytest.raises(RunFailedError, match="no room for 3"),
        starting_service(make_recipe(RAY)) as start,
    ):
        start.service(policy)
    assert ray.closed == 0


def test_an_error_before_the_service_is_needed_closes_it(make_recipe, ray):
    ray.ready.set()
    with pytest.raises(RecipeError, match="meshes"), starting_service(make_recipe(RAY)):
        raise RecipeError("no such meshes")
    assert ray.closed == 1


def test_processes_of_a_distributed_run_wait_until_they_know_their_rank(make_recipe, ray, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with starting_service(make_recipe(RAY)):
        pass
    assert ray.started == []


def test_a_policy_that_is_not_there_starts_nothing(make_recipe, ray):
    start = ServiceStart(make_recipe({**RAY, "policy.path": "nowhere"}))
    start.begin()  # loading the policy reports it
    start.close()
    assert ray.started == []


def test_the_inline_service_is_made_from_the_policy(make_recipe, policy):
    with starting_service(make_recipe({})) as start:
        assert isinstance(start.service(policy), InlineRewardService)


def test_the_service_starts_without_the_libraries_that_load_meanwhile():
    program = (
        "import sys, rl.reward_service, rewards.ray_service\n"
        "slow = ('transformers.modeling_utils', 'trl.trainer', 'peft', 'datasets', 'matplotlib', 'trimesh')\n"
        "assert not [name for name in slow if name in sys.modules]"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, timeout=TIMEOUT)


def test_tf32_without_cuda_is_refused(make_recipe, policy):
    recipe = make_recipe({"workers.decoder_dtype": "tf32"})
    with (
        pytest.raises(RecipeError, match=r"'workers\.decoder_dtype' is tf32 but .* use float32 or bfloat16"),
        reward_service(recipe, policy),
    ):
        pass


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_dtype_reaches_the_in_process_decoder(make_recipe, policy, monkeypatch, dtype):
    given = {}

    def service(skin_vae, settings, device, **options):
        given.update(options, device=device)
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr("rl.reward_service.InlineRewardService", service)
    recipe = make_recipe({"workers.decoder_dtype": dtype, "workers.backend": "inline"})
    with reward_service(recipe, policy):
        assert given == {"dtype": dtype, "device": "cpu"}


def test_the_dtype_reaches_rays_decoder(make_recipe, policy, monkeypatch):
    given = {}

    def service(skin_vae, settings, **options):
        given.update(options)
        return SimpleNamespace(close=lambda: None)

    monkeypatch.setattr("rewards.ray_service.RayRewardService", service)
    recipe = make_recipe({"workers.decoder_dtype": "bfloat16", "workers.backend": "ray"})
    with reward_service(recipe, policy):
        assert given["dtype"] == "bfloat16"
