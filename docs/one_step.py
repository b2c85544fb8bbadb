"""`python docs/one_step.py`: one GRPO step of the shipped policy, every intermediate value printed.

The step of docs/one_step.md: one mesh, a group of four rollouts, the project's own trainer, rewards computed
in this process. Takes about ten seconds on a CPU. Another machine or version of torch may sample other rigs.
"""

from __future__ import annotations

import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")

import torch  # noqa: E402
from transformers import PrinterCallback  # noqa: E402
from transformers.utils import logging as transformers_logging  # noqa: E402
from trl import GRPOConfig  # noqa: E402

from policy.tokens.text_tokenizer import build_text_tokenizer, render  # noqa: E402
from rl.mesh_bank import MeshBank  # noqa: E402
from rl.meshes import load_meshes, prepare_meshes  # noqa: E402
from rl.policy_setup import load_policy  # noqa: E402
from rl.recipe import Recipe, grpo_arguments, load_recipe, total_reward  # noqa: E402
from rl.reward_service import reward_service  # noqa: E402
from rl.scoring import read_rollout  # noqa: E402
from rl.trainer import RigGRPOTrainer  # noqa: E402

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
LOGGED = (
    "reward",
    "reward_std",
    "entropy",
    "kl",
    "clip_ratio/region_mean",
    "loss",
    "grad_norm",
    "learning_rate",
)


class WatchedTrainer(RigGRPOTrainer):
    """The trainer, which keeps its first batch so that it can be printed."""

    batch: dict[str, Any]

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self.batch = super()._generate_and_score_completions(inputs)
        return self.batch

    def completion_log_probs(self) -> list[float]:
        """Log-probability of each completion under the present weights, summed over its tokens."""
        ids = torch.cat([self.batch["prompt_ids"], self.batch["completion_ids"]], dim=1)
        mask = torch.cat([self.batch["prompt_mask"], self.batch["completion_mask"]], dim=1)
        width = self.batch["completion_ids"].shape[1]
        with torch.no_grad():
            log_probs, _, _ = self._get_per_token_logps_and_entropies(self.model, ids, mask, width)
        return (log_probs * self.batch["completion_mask"]).sum(dim=1).tolist()


def main() -> int:
    """Run the step and print it."""
    transformers_logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        recipe = load_recipe(ROOT / "recipes" / "quickstart.yaml", [*OVERRIDES, f"output_dir={folder}"])
        policy = load_policy(recipe)
        policy.model.mesh_encoder.requires_grad_(False)
        policy.model.output_proj.requires_grad_(False)
        with reward_service(recipe, policy) as service:
            meshes = prepare_meshes(load_meshes(recipe), service, recipe)
            trainer = WatchedTrainer(
                model=policy.model,
                bank=MeshBank(meshes.samples, policy.vocabulary, recipe.data.class_name),
                train_meshes=meshes.train,
                service=service,
                recipe=recipe,
                args=GRPOConfig(**grpo_arguments(recipe)),
                processing_class=build_text_tokenizer(policy.vocabulary),
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            show(trainer, recipe)
    return 0


def show(trainer: WatchedTrainer, recipe: Recipe) -> None:
    """Print the step's values in the order in which they arise."""
    bank, batch, vocabulary = trainer.bank, trainer.batch, trainer.bank.vocabulary
    mask = batch["completion_mask"]
    lengths = mask.sum(dim=1).tolist()
    rows = [row[:n] for row, n in zip(batch["completion_ids"].tolist(), lengths, strict=True)]
    rigs = [read_rollout(row, bank.class_id, vocabulary) for row in rows]

    mesh = bank.samples[0].mesh
    print(f"mesh        {mesh.name}, {len(mesh.vertices)} vertices, {len(mesh.faces)} faces")
    print(f"prompt      {bank.prompt(0)}")
    print(f"prompt ids  {batch['prompt_ids'][0].tolist()} in a vocabulary of {vocabulary.size}")

    first, rig = rows[0], rigs[0]
    end = first.index(vocabulary.skeleton_eos)
    print(f"\nrollout 0   {render(first[:13], vocabulary)} …")
    print(f"ids         {first[:13]} …")
    print(f"from {end:>3}    {render(first[end : end + 9], vocabulary)} …")
    if rig is not None:
        print()
        for j in range(4):
            x, y, z = (round(float(value), 3) for value in rig.joints[j])
            print(f"joint {j}     ({x}, {y}, {z}), parent {rig.parents[j]}, codes {rig.codes[j].tolist()}")

    names = list(recipe.rewards.weights)
    before = (batch["ref_per_token_logps"] * mask).sum(dim=1).tolist()
    after = trainer.completion_log_probs()
    columns = [list(trainer._logs["rewards"][name]) for name in names]
    scores = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    print("\nrollout  tokens  joints  " + "  ".join(names) + "   total  advantage  log p before   after")
    for k, (rewards, advantage) in enumerate(zip(scores, batch["advantages"].tolist(), strict=True)):
        joints = 0 if rigs[k] is None else len(rigs[k].joints)
        shown = "  ".join(f"{rewards[name]:>{len(name)}.4f}" for name in names)
        print(
            f"{k:>7}  {lengths[k]:>6}  {joints:>6}  {shown}  {total_reward(rewards, recipe.rewards):.4f}"
            f"  {advantage:>9.4f}  {before[k]:>12.2f} {after[k]:>7.2f}"
        )
    print()
    for key in LOGGED:
        print(f"{key:<22}  {trainer.state.log_history[0][key]:.4g}")


if __name__ == "__main__":
    sys.exit(main())
