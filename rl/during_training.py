"""Evaluates the policy on held-out meshes while it trains, logs the means, and keeps the best policy."""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from policy.bundle import RigPolicy
from policy.pretraining.processes import largest, main_process_only
from policy.skintokens.skin_vae import SkinVAE
from rewards.service import RewardService
from rl.best_policy import BestPolicy, candidate, read_best, read_start, write_best, write_start
from rl.evaluation import evaluate
from rl.evaluation_results import Evaluation
from rl.evaluation_tables import short_line
from rl.meshes import RunMeshes, spread
from rl.model_card import CardFacts, base_policy, model_card
from rl.random_states import same_random_states
from rl.recipe import Recipe
from rl.reporting import EVALUATION_PREFIX, MetricsLog
from rl.run_files import BEST_FOLDER, START_FILE
from rl.sharding import model_to_save, whole_weights

if TYPE_CHECKING:
    from rl.trainer import RigGRPOTrainer


class DuringTraining(TrainerCallback):
    """Evaluates before the first step, after each multiple of `eval.every` steps, and after the last.

    The main process evaluates, with the trainer's rollout engine; the others wait for it. The result is
    logged before the step's checkpoint is saved, so a run that resumes from a checkpoint has the evaluations
    up to it. One that is missing all the same, because a signal ended the run, is made up for before the next
    step. Training is left as it is: random states, modes and weights.

    Args:
        trainer: the run's.
        skin_vae: the policy's.
        service: scores the rigs.
        meshes: the run's, as indices into the trainer's bank.
        log: the run's, whose file says which evaluations have been made.
    """

    def __init__(
        self,
        trainer: RigGRPOTrainer,
        skin_vae: SkinVAE,
        service: RewardService,
        meshes: RunMeshes,
        log: MetricsLog,
    ) -> None:
        self._trainer, self._skin_vae, self._service = trainer, skin_vae, service
        self._recipe = during_recipe(trainer.recipe)
        places = spread(len(meshes.held_out), trainer.recipe.eval.every_meshes)
        self._meshes = [meshes.held_out[place] for place in places]
        self._counts = len(meshes.train), len(meshes.held_out)
        self._log = log
        self._output = Path(trainer.recipe.output_dir)
        self._begun = False
        self._best: BestPolicy | None = None
        self._start: Evaluation | None = None  # of the policy that the run started from

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Before this command's first step: evaluate the policy as it is, if it is due and not yet done."""
        if self._begun:
            return
        self._begun = True
        if state.is_world_process_zero:
            if state.global_step == 0:  # what a run without a checkpoint has left counts for nothing
                shutil.rmtree(self._output / BEST_FOLDER, ignore_errors=True)
                (self._output / START_FILE).unlink(missing_ok=True)
            self._best = read_best(self._output, self._recipe)
            self._start = read_start(self._output, self._recipe)
        main = state.is_world_process_zero
        missing = main and self._due(state) and not self._log.has_evaluation(state.global_step)
        if largest([int(missing)])[0]:
            self._evaluate(args, state, control)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluate if it is due; a run that is being stopped leaves it to the run that resumes."""
        stopping = control.should_training_stop and state.global_step < state.max_steps
        if self._due(state) and not stopping:
            self._evaluate(args, state, control)

    def _due(self, state: TrainerState) -> bool:
        return state.global_step % self._recipe.eval.every == 0 or state.global_step == state.max_steps

    def _evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl) -> None:
        trainer = self._trainer
        with (
            same_random_states(),
            whole_weights(trainer.model_wrapped, trainer.accelerator),
            main_process_only() as here,
        ):
            if here:
                began = time.perf_counter()
                evaluation = self._measure(state.global_step)
                numbers = numbers_of(evaluation, time.perf_counter() - began)
                if state.global_step == 0:
                    self._start = evaluation
                    write_start(self._output, evaluation, self._recipe)
                best = candidate(evaluation, state.global_step, self._recipe)
                is_best = best is not None and best.is_better_than(self._best)
                # Before the evaluation counts as made: a run that is killed in between makes it again.
                if best is not None and is_best:
                    self._keep(best, evaluation)
                self._say(evaluation, state.global_step, is_best)
                # Not `on_log`, which would also take back the request to log this step.
                trainer.callback_handler.call_event("on_log", args, state, control, logs=numbers)

    def _measure(self, step: int) -> Evaluation:
        trainer = self._trainer
        model: Any = trainer.accelerator.unwrap_model(trainer.model)
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        trained_encoder = self._recipe.policy.train_mesh_encoder
        if trained_encoder:
            trainer.bank.forget_embeds()
        was_training = model.training
        model.eval()
        try:
            return evaluate(
                RigPolicy(base, self._skin_vae),
                trainer.bank,
                self._meshes,
                self._service,
                self._recipe,
                f"step {step}",
                trainer.rig_rollout.sampler(trainer),
            )
        finally:
            model.train(was_training)
            if trained_encoder:
                trainer.bank.forget_embeds()

    def _keep(self, best: BestPolicy, evaluation: Evaluation) -> None:
        trainer = self._trainer
        model = model_to_save(trainer.model_wrapped, trainer.accelerator)
        recipe, processes = trainer.recipe, trainer.accelerator.num_processes
        base = base_policy(recipe)
        facts = CardFacts(recipe, base, processes, *self._counts, best.step, self._start, evaluation, best)
        write_best(self._output, best, RigPolicy(model, self._skin_vae), model_card(facts))
        self._best = best

    def _say(self, evaluation: Evaluation, step: int, is_best: bool) -> None:
        by = self._recipe.eval.best_by
        note = "best so far"
        if not is_best:
            note = f"'{by}' has no value" if self._best is None else f"best: step {self._best.step}"
        tqdm.write(f"step {step}  evaluation: {short_line(evaluation, by)}  ({note})", file=sys.stderr)


def during_recipe(recipe: Recipe) -> Recipe:
    """The recipe whose `eval.samples` is that of the evaluations during training."""
    return replace(recipe, eval=replace(recipe.eval, samples=recipe.eval.every_samples))


def numbers_of(evaluation: Evaluation, seconds: float) -> dict[str, float]:
    """What is logged of an evaluation: `eval_<measure>`, `eval_se/<measure>`, `eval_rig/<diagnostic>`.

    transformers' integrations, and `MetricsLog`, write the prefix as `eval/`.
    """
    named = {
        **evaluation.mean,
        **{f"se/{name}": value for name, value in evaluation.standard_error.items()},
        **{f"rig/{name}": value for name, value in evaluation.diagnostics.items()},
        "meshes": float(len(evaluation.per_mesh)),
        "seconds": seconds,
    }
    return {f"{EVALUATION_PREFIX}{name}": value for name, value in named.items()}
