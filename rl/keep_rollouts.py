"""Keeps rollouts of training to look at: best and worst of a group, and every new kind of failure."""

from __future__ import annotations

import hashlib
import json
import math
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from accelerate.utils import gather_object
from tqdm import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from data.gltf.skinned import write_skinned_glb
from data.rig import Rig
from data.sets.dataset import MeshSample
from data.welding import mesh_places
from policy.skintokens.skin_vae import SkinVAE
from policy.tokens.text_tokenizer import mesh_prompt, parse_mesh_prompt
from policy.tokens.vocabulary import Vocabulary
from rewards.skin_decoder import SkinDecoder
from rewards.worker import RolloutRig
from rl.ground_truth import own_decoder
from rl.meshes import reward_meshes
from rl.pictures import draw_rig
from rl.random_states import same_random_states
from rl.recipe import total_reward
from rl.rollout_store import KeptRollout, RolloutStore, Why, kind_of
from rl.run_directory import ROLLOUTS_FOLDER
from rl.scoring import SampledRollout, read_rollout, why_unreadable
from rl.wandb_media import send_rollouts

if TYPE_CHECKING:
    from rl.trainer import RigGRPOTrainer

Item = TypeVar("Item")

MEBIBYTE = 2**20


@dataclass(frozen=True)
class Candidate:
    """A rollout that one process proposes to keep: its row, its group and its place in the step's batch."""

    row: KeptRollout
    group: int
    place: int


@dataclass(frozen=True, eq=False)
class _Seen:
    """A rollout of the step on this process, with its place in the step's batch over all processes."""

    rollout: SampledRollout
    advantage: Any
    place: int


class KeepRollouts(TrainerCallback):
    """Keeps rollouts at the end of the steps that `report` asks for; the main process writes them.

    Each process proposes the best and the worst valid rig of its part of every group, and the first rollout
    of each kind of failure that it has met. The main process keeps those of the group whose totals differ
    most, and failures of kinds not yet kept. Training is left as it is.

    Args:
        trainer: the run's; its rollouts are watched from now on.
        skin_vae: the policy's, to decode the skin for the GLB files.
    """

    def __init__(self, trainer: RigGRPOTrainer, skin_vae: SkinVAE) -> None:
        self._trainer, self._skin_vae, self._recipe = trainer, skin_vae, trainer.recipe
        self._seen: list[_Seen] = []
        self._batches = 0  # of the step
        self._met: set[str] = set()
        self._store: RolloutStore | None = None
        self._decoder: SkinDecoder | None = None
        self._digest = decoder_digest(skin_vae, trainer.bank.vocabulary)
        args = trainer.args
        # Steps from one batch of rollouts to the next: with `num_iterations`, several train on the same.
        batches = args.steps_per_generation * args.num_iterations / args.gradient_accumulation_steps
        self._period = max(1, math.ceil(batches))
        trainer.on_rollouts = self._see

    def _see(self, rows: list[SampledRollout], advantages: list[Any]) -> None:
        accelerator = self._trainer.accelerator
        before = (self._batches * accelerator.num_processes + accelerator.process_index) * len(rows)
        self._batches += 1
        self._seen += [
            _Seen(row, advantage, before + at)
            for at, (row, advantage) in enumerate(zip(rows, advantages, strict=True))
        ]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the folder; drop what the run repeats."""
        if state.is_world_process_zero:
            folder = Path(self._recipe.output_dir) / ROLLOUTS_FOLDER
            self._store = RolloutStore(
                folder, self._recipe.report.max_megabytes * MEBIBYTE, state.global_step
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Keep rollouts of this step, if it sampled any."""
        seen, self._seen, self._batches = self._seen, [], 0
        if not seen:
            return
        with same_random_states():
            step, due = state.global_step, self._due(state)
            found = self._candidates(seen, step, due)
            if self._trainer.accelerator.num_processes > 1:
                found = gather_object(found)
            if self._store is not None:
                new = chosen(found, self._store.kinds)
                if new:
                    self._keep(self._store, new, step)

    def _due(self, state: TrainerState) -> bool:
        every, step = self._recipe.report.every, state.global_step
        since = range(step - self._period + 1, step + 1)
        return any(at in (1, state.max_steps) or at % every == 0 for at in since if at > 0)

    def _candidates(self, seen: Sequence[_Seen], step: int, due: bool) -> list[Candidate]:
        size = self._trainer.num_generations
        found: list[Candidate] = []
        groups: dict[int, list[tuple[float, _Seen]]] = defaultdict(list)
        for one in seen:
            failure = self._failure(one.rollout)
            if failure is not None:
                kind = kind_of(failure, self._trainer.bank.samples[one.rollout.mesh].name)
                if kind not in self._met:
                    self._met.add(kind)
                    row = replace(self._row(one, step, "failure"), failure=failure, kind=kind)
                    found.append(Candidate(row, one.place // size, one.place))
            elif due:
                rewards = one.rollout.score.rewards(list(self._recipe.rewards.weights))
                assert rewards is not None  # no failure
                groups[one.place // size].append((total_reward(rewards, self._recipe.rewards), one))
        for number, group in groups.items():
            for why, one in ends(group):
                found.append(Candidate(self._row(one, step, why), number, one.place))
        return found

    def _failure(self, rollout: SampledRollout) -> str | None:
        """What is wrong with a rollout, in the words of who found it; None for a scored rig."""
        if rollout.rig is None:
            given = self._trainer.given.get(rollout.mesh)
            vocabulary = self._trainer.bank.vocabulary
            return why_unreadable(rollout.tokens, rollout.class_id, vocabulary, given)
        score = rollout.score.score()
        if score.rewards is None:
            return rollout.score.group().failure or "the mesh cannot be scored"
        if not score.valid:
            return score.reason or "the rig cannot be scored"
        bad = [name for name, value in score.rewards.items() if not math.isfinite(value)]
        return f"the reward {bad[0]} is not finite" if bad else None

    def _row(self, one: _Seen, step: int, why: Why) -> KeptRollout:
        trainer, rollout = self._trainer, one.rollout
        sample = trainer.bank.samples[rollout.mesh]
        weights = self._recipe.rewards.weights
        score, rewards = rollout.score.score(), rollout.score.rewards(list(weights))
        advantage = one.advantage  # with phase credit one per token, padded to the batch
        return KeptRollout(
            why=why,
            step=step,
            mesh=sample.name,
            mesh_file=None if sample.file is None else str(Path(sample.file).absolute()),
            mesh_key=reward_meshes([sample])[0].key,
            prompt=mesh_prompt(rollout.mesh, rollout.class_id, trainer.bank.vocabulary),
            given_skeleton=rollout.mesh in trainer.given,
            tokens=list(rollout.tokens),
            seed=rollout.seed,
            pose_seed=rollout.pose_seed,
            rewards=rewards,
            weights=weights,
            total=None if rewards is None else total_reward(rewards, self._recipe.rewards),
            valid=score.valid,
            joints=None if rollout.rig is None else len(rollout.rig.joints),
            diagnostics=score.diagnostics,
            advantage=advantage[: len(rollout.tokens)] if isinstance(advantage, list) else advantage,
            policy=self._recipe.policy.path,
            decoder=self._digest,
        )

    def _keep(self, store: RolloutStore, new: Sequence[Candidate], step: int) -> None:
        """Write rows and GLB files, send them to wandb, and say what was kept."""
        store.folder.mkdir(parents=True, exist_ok=True)
        rows: list[KeptRollout] = []
        rigs: list[Rig | None] = []
        for row in (one.row for one in new):
            if row.why == "failure":
                rows.append(row)
                rigs.append(None)
                continue
            rows.append(replace(row, glb=row.file_name()))
            rig = self._rig(row)
            rigs.append(rig)
            write_skinned_glb(store.folder / row.file_name(), self._sample(row).mesh, rig)
        if "wandb" in self._trainer.args.report_to:
            with tempfile.TemporaryDirectory() as pictures:
                self._send(store, rows, rigs, Path(pictures), step)
        before = store.dropped
        store.add(rows)
        shown = [f"{row.why} {row.mesh} ({row.kind or f'{row.total:.3f}'})" for row in rows]
        tqdm.write(f"step {step}  kept in {store.folder}: {', '.join(shown)}", file=sys.stderr)
        if store.dropped and not before:
            tqdm.write(
                f"{store.folder} has reached report.max_megabytes={self._recipe.report.max_megabytes}: "
                "steps between the first and the latest are dropped",
                file=sys.stderr,
            )

    def _send(
        self,
        store: RolloutStore,
        rows: Sequence[KeptRollout],
        rigs: Sequence[Rig | None],
        pictures: Path,
        step: int,
    ) -> None:
        sent: list[tuple[KeptRollout, Path | None, Path | None]] = []
        for row, rig in zip(rows, rigs, strict=True):
            if row.glb is None or rig is None:
                sent.append((row, None, None))
                continue
            picture = pictures / f"{row.why}.png"
            draw_rig(self._sample(row).mesh, rig, picture)
            sent.append((row, store.folder / row.glb, picture))
        send_rollouts(step, sent, [*store.rows, *rows])

    def _rig(self, row: KeptRollout) -> Rig:
        """The row's rig with weights at all vertices of its mesh."""
        vocabulary = self._trainer.bank.vocabulary
        mesh, class_id = parse_mesh_prompt(row.prompt, vocabulary)
        given = self._trainer.given.get(mesh)
        rig = read_rollout(row.tokens, class_id, vocabulary, given)
        assert rig is not None  # it was scored
        if self._decoder is None:
            self._decoder = own_decoder(self._skin_vae, self._recipe)
        return whole_rig(rig, self._sample(row), self._decoder, () if given is None else given.names)

    def _sample(self, row: KeptRollout) -> MeshSample:
        mesh, _ = parse_mesh_prompt(row.prompt, self._trainer.bank.vocabulary)
        return self._trainer.bank.samples[mesh]


def whole_rig(rig: RolloutRig, sample: MeshSample, decoder: SkinDecoder, names: tuple[str, ...]) -> Rig:
    """A rollout's rig with weights (V, J) at all vertices of its mesh: one decoding per place."""
    places = mesh_places(sample.mesh.vertices, sample.mesh.faces)
    (weights,) = decoder.decode(reward_meshes([sample])[0], places.points, places.normals, [rig.codes])
    return Rig(rig.joints, rig.parents, weights[places.of_vertex], names)


def ends(group: Sequence[tuple[float, Item]]) -> list[tuple[Why, Item]]:
    """The best and the worst of (total reward, item) pairs, the first of equals; one alone is the best."""
    best = max(range(len(group)), key=lambda place: group[place][0])
    rest = [place for place in range(len(group)) if place != best]
    named: list[tuple[Why, Item]] = [("best", group[best][1])]
    if rest:
        named.append(("worst", group[min(rest, key=lambda place: group[place][0])][1]))
    return named


def chosen(found: Sequence[Candidate], kinds: set[str]) -> list[Candidate]:
    """What to keep of all processes' candidates.

    Best and worst of the group whose totals differ most, the first of equals; and of each kind of failure
    that is not in `kinds` the first of the batch.
    """
    new: dict[str, Candidate] = {}
    groups: dict[int, list[tuple[float, Candidate]]] = defaultdict(list)
    for one in sorted(found, key=lambda one: one.place):
        if one.row.kind is None:
            assert one.row.total is not None  # a valid rig has one
            groups[one.group].append((one.row.total, one))
        elif one.row.kind not in kinds:
            new.setdefault(one.row.kind, one)
    spreads = {
        number: max(total for total, _ in group) - min(total for total, _ in group)
        for number, group in groups.items()
    }
    widest = [] if not spreads else ends(groups[max(spreads, key=spreads.__getitem__)])
    return [*(replace(one, row=replace(one.row, why=why)) for why, one in widest), *new.values()]


def decoder_digest(skin_vae: SkinVAE, vocabulary: Vocabulary) -> str:
    """Digest of skin VAE and vocabulary, which turn tokens into a rig: scores compare only if it agrees."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps([asdict(skin_vae.config), vocabulary.to_dict()], sort_keys=True).encode())
    for name, value in sorted(skin_vae.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
