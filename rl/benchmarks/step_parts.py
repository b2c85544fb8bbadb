"""The parts of a GRPO step, twice: as the product runs them, and as plain code would."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import LogitsProcessorList

from policy.tokens.skeleton_tokenizer import detokenize, split_rig
from rewards.score import score_group, score_rig
from rl.benchmarks.bounded_grammar import PythonGrammar
from rl.benchmarks.workload import Workload
from rl.engine.fast import FastSampler
from rl.engine.sampler import SamplingRequest


class DecodedRig(NamedTuple):
    """A rig to score: joints (J, 3), parents (J,), weights (S, J)."""

    joints: NDArray[np.float32]
    parents: NDArray[np.int64]
    weights: NDArray[np.float32]


class Parts:
    """The parts of a step on one workload.

    Every method is one part of one side. `plain_` is what a straightforward implementation does: Hugging
    Face `generate` with a logits processor in Python, log-probabilities with every row's prefix repeated, the
    decoder one bone at a time, scoring one rig after another. The others are what the trainer calls.
    """

    def __init__(self, work: Workload) -> None:
        self.work = work
        size = work.size
        self.model = work.policy.model
        self.model.mesh_encoder.requires_grad_(False)
        self.model.output_proj.requires_grad_(False)
        self.vae = work.policy.skin_vae.requires_grad_(False)
        self.dtype = torch.bfloat16 if size.half else torch.float32
        self.sampler = FastSampler(self.model, work.grammar, self.dtype)
        self.decoder = self.vae.frozen_decoder(self.dtype)
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6)
        # `generate` on weights in the sampling dtype, its best case.
        self.generator = self.model
        if size.half:
            self.generator = type(self.model)(self.model.config).to(work.device, self.dtype)
            self.generator.load_state_dict(self.model.state_dict())
        self.generator.eval()

    # ------------------------------------------------------------ rollouts

    def rollout(self) -> Tensor:
        """Completions (B, L) of the fast engine, with the refresh of its weights."""
        work = self.work
        self.sampler.refresh()
        request = SamplingRequest(
            work.embeds,
            work.mesh_index,
            torch.full((work.size.rows,), work.class_id),
            [()] * work.size.meshes,
            work.uniforms,
        )
        return self.sampler.sample(request)[0]

    @torch.no_grad()
    def plain_rollout(self) -> Tensor:
        """Completions (B, L) of `generate`."""
        work, words = self.work, self.work.grammar.vocabulary
        torch.manual_seed(0)
        processor = PythonGrammar(words, work.grammar.fewest, work.grammar.most)
        ids = self.generator.generate(
            input_ids=work.prompt.repeat(work.size.rows, 1),
            mesh_embeds=work.embeds[work.mesh_index.to(work.device)].to(self.dtype),
            max_new_tokens=min(work.size.plain_tokens, work.size.most_tokens),
            do_sample=True,
            top_k=0,
            logits_processor=LogitsProcessorList([processor]),
            use_cache=True,
            eos_token_id=words.eos,
            pad_token_id=words.pad,
        )
        return ids[:, work.prompt.shape[1] :]

    # ------------------------------------------------------------ log-probabilities

    def log_probs(self, completions: Tensor, rows: slice, packed: bool) -> Tensor:
        """Log-probabilities of the completions `rows`, (b, L), with the model in its present mode."""
        work = self.work
        own = completions[rows]
        output = self.model(
            input_ids=torch.cat([work.prompt.repeat(len(own), 1), own], dim=1),
            completion_ids=own,
            completion_lengths=self._lengths(own) if packed else None,
            mesh_embeds=work.embeds,
            mesh_index=work.mesh_index.to(work.device)[rows],
            packed=packed,
        )
        return output.log_probs

    @torch.no_grad()
    def reference(self, completions: Tensor, packed: bool) -> None:
        """Log-probabilities without gradient, as of a reference policy."""
        with self._autocast():
            for rows in self._micro_batches(packed):
                self.log_probs(completions, rows, packed)

    def update(self, completions: Tensor, packed: bool) -> None:
        """Log-probabilities with gradient, by micro-batches, without the optimiser's step."""
        self.model.train()
        for rows in self._micro_batches(packed):
            with self._autocast():
                loss = self.log_probs(completions, rows, packed).sum() / completions.numel()
            loss.backward()
        self.model.eval()

    def optimise(self) -> None:
        """The optimiser's step, the same on both sides."""
        self.optimizer.step()

    def _micro_batches(self, packed: bool) -> list[slice]:
        size = self.work.size
        count = size.group if packed else size.micro_batch
        return [slice(start, start + count) for start in range(0, size.rows, count)]

    def _autocast(self) -> AbstractContextManager[object]:
        if not self.work.size.half:
            return nullcontext()
        return torch.autocast(self.work.device.type, self.dtype)

    def _lengths(self, completions: Tensor) -> Tensor:
        return (completions != self.work.grammar.vocabulary.pad).sum(dim=1)

    # ------------------------------------------------------------ decoding and scoring

    def read(self, completions: Tensor) -> list[tuple[NDArray[np.float32], NDArray[np.int64], Tensor]]:
        """Joints, parents and codes (J, K) of each completion."""
        words = self.work.grammar.vocabulary
        rigs = []
        for row in completions.tolist():
            length = row.index(words.eos) + 1
            skeleton, codes = split_rig([words.bos, self.work.class_id, *row[:length]], words)
            rig = detokenize(skeleton, words)
            rigs.append((rig.joints, rig.parents, torch.from_numpy(codes)))
        return rigs

    def decode(self, codes: Sequence[Tensor]) -> list[Tensor]:
        """Weights (bones, P) of each group: all bones of a group in one call."""
        work, group = self.work, self.work.size.group
        results = []
        for start in range(0, len(codes), group):
            whole = torch.cat(list(codes[start : start + group])).to(work.device)
            weights = self.vae.decode(whole, work.condition, work.points, work.normals, decoder=self.decoder)
            results += weights.split([len(own) for own in codes[start : start + group]])
        return results

    @torch.no_grad()
    def plain_decode(self, codes: Sequence[Tensor], share: float) -> int:
        """Decode bone by bone, in float32, the first `share` of all bones; returns their number."""
        work = self.work
        bones = torch.cat(list(codes)).to(work.device)
        bones = bones[: max(1, round(share * len(bones)))]
        vectors = self.vae.codes_to_latents(bones)
        for bone in range(len(bones)):
            self.vae.decode_logits(
                vectors[bone : bone + 1], work.condition[None], work.points[None], work.normals[None]
            ).sigmoid()
        return len(bones)

    def rigs(self, completions: Tensor, weights: Sequence[Tensor]) -> list[DecodedRig]:
        """Rigs with the weights of the scoring mesh's vertices."""
        count = len(self.work.scoring_mesh.vertices)
        return [
            DecodedRig(joints, parents, np.ascontiguousarray(own[:, :count].T.cpu().numpy()))
            for (joints, parents, _), own in zip(self.read(completions), weights, strict=True)
        ]

    def score(self, rigs: Sequence[DecodedRig]) -> None:
        """Score each group in one call."""
        work, group = self.work, self.work.size.group
        for start in range(0, len(rigs), group):
            score_group(work.scoring_mesh, rigs[start : start + group], work.rotations, work.settings)

    def plain_score(self, rigs: Sequence[DecodedRig]) -> None:
        """Score one rig after another."""
        work = self.work
        for rig in rigs:
            turns = work.rotations[:, : len(rig.joints)]
            score_rig(work.scoring_mesh, rig.joints, rig.parents, rig.weights, turns, work.settings)
