"""`python docs/one_step.py`: one GRPO step of the shipped policy, every intermediate value printed.

The step of docs/one_step.md: one mesh, a group of four rollouts, the real trainer with rewards in this process. Takes
a quarter of a minute on a CPU. Other machines and versions of torch may sample other rigs.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("DS_ACCELERATOR", "cpu")

import torch  # noqa: E402
from trl import GRPOConfig  # noqa: E402

from policy.tokens.text_tokenizer import build_text_tokenizer, render  # noqa: E402
from rl.meshes import MeshBank  # noqa: E402
from rl.recipe import grpo_arguments, load_recipe, total_reward  # noqa: E402
from rl.session import load_meshes, load_policy, prepare_meshes, reward_service  # noqa: E402
from rl.trainer import RigGRPOTrainer, read_rollout  # noqa: E402

OVERRIDES = (
    f"policy.path={ROOT / 'checkpoints' / 'small'}",
    "data.train_count=1",
    "data.eval_count=1",
    "workers.backend=inline",
    "train.max_steps=1",
    "train.num_generations=4",
    "train.per_device_train_batch_size=4",
    "train.disable_tqdm=true",
    "train.use_cpu=true",
)


class WatchedTrainer(RigGRPOTrainer):
    """The trainer, with what it made of the first batch kept for printing."""

    batch: dict[str, Any]
    columns: dict[str, Any]

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self.batch = super()._generate_and_score_completions(inputs)
        return self.batch

    def _calculate_rewards(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.columns = {"rig_score": [row["rig_score"] for row in inputs]}
        return super()._calculate_rewards(inputs, *args, **kwargs)

    def sequence_log_probs(self) -> torch.Tensor:
        """(B,) log-probability of each completion of the batch under the present weights, summed over its tokens."""
        ids = torch.cat([self.batch["prompt_ids"], self.batch["completion_ids"]], dim=1)
        mask = torch.cat([self.batch["prompt_mask"], self.batch["completion_mask"]], dim=1)
        width = self.batch["completion_ids"].shape[1]
        with torch.no_grad():
            log_probs, _, _ = self._get_per_token_logps_and_entropies(self.model, ids, mask, width)
        return (log_probs * self.batch["completion_mask"]).sum(dim=1)


def main() -> int:
    """Run the step and print it."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = load_recipe(ROOT / "recipes" / "quickstart.yaml", [*OVERRIDES, f"output_dir={folder}"])
        policy = load_policy(recipe)
        with reward_service(recipe, policy) as service:
            meshes = prepare_meshes(load_meshes(recipe), service, recipe)
            bank = MeshBank(meshes.samples, policy.vocabulary, recipe.data.class_name)
            policy.model.mesh_encoder.requires_grad_(False)
            policy.model.output_proj.requires_grad_(False)
            trainer = WatchedTrainer(
                model=policy.model,
                bank=bank,
                train_meshes=meshes.train,
                service=service,
                recipe=recipe,
                args=GRPOConfig(**grpo_arguments(recipe)),
                processing_class=build_text_tokenizer(policy.vocabulary),
            )
            trainer.train()
            show(trainer, recipe)
    return 0


def show(trainer: WatchedTrainer, recipe: Any) -> None:
    """Print the step's values in the order in which they arise."""
    bank, batch = trainer.bank, trainer.batch
    vocabulary = bank.vocabulary
    mesh = bank.samples[0].mesh
    print(f"mesh          {mesh.name}: {len(mesh.vertices)} vertices, {len(mesh.faces)} faces")
    print(f"prompt        {bank.prompt(0)}")
    print(f"prompt ids    {bank.prompt_ids(0)}")
    print(f"vocabulary    {vocabulary.size} ids, of them {vocabulary.codebook} SkinTokens")
    lengths = batch["completion_mask"].sum(dim=1).tolist()
    rows = [row[:n] for row, n in zip(batch["completion_ids"].tolist(), lengths, strict=True)]
    rigs = [read_rollout(row, bank.class_id, vocabulary) for row in rows]
    first, rig = rows[0], rigs[0]
    print(f"completion 0  {render(first[:14], vocabulary)} …")
    print(f"its ids       {first[:14]} …")
    end = first.index(vocabulary.skeleton_eos)
    print(f"skeleton ends at token {end}: {render(first[end : end + 9], vocabulary)} …")
    if rig is not None:
        for j in range(4):
            print(f"joint {j}       {[round(float(x), 3) for x in rig.joints[j]]} parent {rig.parents[j]}")
        print(f"codes of bone 0: {rig.codes[0].tolist()}, of bone 1: {rig.codes[1].tolist()}")
    names = list(recipe.rewards.weights)
    before = batch.get("ref_per_token_logps")
    after = trainer.sequence_log_probs()
    print("rollout tokens joints " + " ".join(f"{name:>11}" for name in names) + "   total advantage  log p before  after")
    for k, score in enumerate(trainer.columns["rig_score"]):
        rewards = score.rewards(names) or {}
        start = float((before[k] * batch["completion_mask"][k]).sum())
        joints = len(rigs[k].joints) if rigs[k] is not None else 0
        print(
            f"{k:>7} {lengths[k]:>6} {joints:>6} "
            + " ".join(f"{rewards[name]:>11.4f}" for name in names)
            + f" {total_reward(rewards, recipe.rewards):>7.4f} {batch['advantages'][k]:>9.4f} {start:>13.2f} {after[k]:>6.2f}"
        )
    logged = trainer.state.log_history[0]
    for key in ("loss", "grad_norm", "kl", "entropy", "reward", "reward_std", "clip_ratio/region_mean", "learning_rate"):
        print(f"{key:<22}  {logged[key]}")


if __name__ == "__main__":
    sys.exit(main())
