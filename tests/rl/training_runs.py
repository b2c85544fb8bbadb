"""Training runs in this process for tests, with real rewards or with scores of the test's choosing."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from trl import GRPOConfig

from policy.bundle import RigPolicy
from policy.tokenrig.modeling import TokenRigForCausalLM
from rewards.service import InlineRewardService
from rewards.worker import INVALID, UNSCORED, GroupScore, RewardMesh, RolloutRig, RolloutScore
from rl.mesh_bank import MeshBank
from rl.meshes import load_meshes, prepare_meshes
from rl.policy_setup import load_policy
from rl.recipe import Recipe, grpo_arguments, reward_settings
from rl.reporting import MetricsLog
from rl.run_directory import OpenRun
from rl.trainer import RigGRPOTrainer
from rl.training import build_trainer, optimise


class Run:
    """The parts of a training run in this process, with a service of one's own if given."""

    def __init__(self, recipe: Recipe, service: object | None = None) -> None:
        self.recipe = recipe
        self.args = GRPOConfig(**grpo_arguments(recipe))
        self.policy: RigPolicy = load_policy(recipe)
        self.service = service or InlineRewardService(self.policy.skin_vae, reward_settings(recipe))
        meshes = prepare_meshes(load_meshes(recipe), self.service, recipe)
        self.bank = MeshBank(meshes.samples, self.policy.vocabulary, recipe.data.class_name)
        self.meshes = meshes
        self.before = weights(self.policy.model)

    def trainer(self) -> RigGRPOTrainer:
        parts = (self.recipe, self.args, self.policy, self.bank, self.meshes.train, self.service)
        return build_trainer(*parts, MetricsLog(self.metrics_file))

    def optimise(self, checkpoint: Path | None = None) -> TokenRigForCausalLM:
        parts = (self.recipe, self.args, self.policy, self.bank, self.meshes, self.service)
        return optimise(*parts, OpenRun(checkpoint, None))

    def metrics(self) -> list[dict[str, float | None]]:
        return [json.loads(line) for line in self.metrics_file.read_text().splitlines()]

    @property
    def metrics_file(self) -> Path:
        return Path(self.recipe.output_dir) / "metrics.jsonl"


def weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def changed(before: dict[str, torch.Tensor], model: torch.nn.Module) -> set[str]:
    return {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}


class FakeService:
    """Scores with numbers of the test's choosing: `value_of(row)` for all four rewards, None for unscored."""

    def __init__(self, value_of: Callable[[int], float | None]) -> None:
        self.value_of = value_of
        self.events: list[str] = []
        self.submitted: list[tuple[int, int, int]] = []

    def prepare_meshes(self, meshes: Sequence[RewardMesh]) -> list[str | None]:
        return [None] * len(meshes)

    def submit(self, mesh: int, rigs: Sequence[RolloutRig | None], pose_seed: int) -> "FakeService.Pending":
        self.events.append("submit")
        self.submitted.append((mesh, len(rigs), pose_seed))
        return FakeService.Pending(self, [self.score(row, rig) for row, rig in enumerate(rigs)])

    def score(self, row: int, rig: RolloutRig | None) -> RolloutScore:
        value = self.value_of(row)
        if value is None:
            return UNSCORED if rig is not None else INVALID
        names = ("coverage", "containment", "sparsity", "smoothness")
        return RolloutScore(dict.fromkeys(names, value), valid=rig is not None)

    def close(self) -> None: ...

    class Pending:
        def __init__(self, service: "FakeService", scores: list[RolloutScore]) -> None:
            self.service, self.scores = service, scores

        def result(self) -> GroupScore:
            self.service.events.append("result")
            return GroupScore(self.scores, 0.25, 0.5, failure="the worker died")
