"""Rollouts: the sampled distribution is the trained one, and a row depends on its seed and mesh alone."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from policy.bundle import RigPolicy
from policy.tokenrig.log_probs import row_uniforms
from policy.tokens.grammar import PROMPT_LENGTH, Grammar
from policy.tokens.skeleton_tokenizer import tokenize_skeleton
from rl.engine import fast, plain
from rl.engine.fast import FastSampler
from rl.engine.plain import PlainSampler
from rl.engine.sampler import Sampler
from rl.prompts import training_rows
from rl.rollout import Rollouts, row_seeds, sample_rigs
from rl.scoring import read_rollout
from tests.rl import tiny

LIMIT = 120
ROWS = 24
WORDS = tiny.VOCABULARY


def make_engine(policy: RigPolicy, name: str, mode: str = "strict") -> Sampler:
    """The plain engine, or the fast one in the dtype of the policy."""
    grammar = Grammar(WORDS, mode)
    if name == "plain":
        return PlainSampler(policy.model, grammar)
    return FastSampler(policy.model, grammar, policy.model.dtype)


@pytest.fixture(params=["plain", "fast"])
def engine(request) -> str:
    """Every test here holds for both engines."""
    return request.param


@dataclass
class Setting:
    """A policy whose choices are far from equally likely, and the embeddings of three meshes."""

    policy: RigPolicy
    mesh_embeds: torch.Tensor
    engine: str

    def sampler(self, mode: str = "strict") -> Sampler:
        """A new sampler of the policy as it is now."""
        return make_engine(self.policy, self.engine, mode)

    @property
    def mesh_index(self) -> torch.Tensor:
        return torch.arange(ROWS) % 3

    @property
    def class_ids(self) -> torch.Tensor:
        names = (None, "rignet", "vroid", "articulation")
        return torch.tensor([WORDS.class_id(names[row % 4]) for row in range(ROWS)])

    def sample(self, rows=slice(None), limit=LIMIT, mode="strict", key=7, **options) -> Rollouts:
        return sample_rigs(
            self.sampler(mode),
            self.mesh_embeds,
            self.mesh_index[rows],
            self.class_ids[rows],
            max_new_tokens=limit,
            seeds=np.array(row_seeds(ROWS, key))[rows].tolist(),
            **options,
        )


@pytest.fixture
def setting(policy: RigPolicy, engine: str) -> Setting:
    with torch.no_grad():
        policy.model.transformer.model.norm.weight.mul_(4)  # logits of a few units
        generator = torch.Generator().manual_seed(0)
        points = torch.rand(3, 64, 3, generator=generator) * 2 - 1
        normals = torch.nn.functional.normalize(torch.randn(3, 64, 3, generator=generator), dim=-1)
        return Setting(policy, policy.encode_mesh(points, normals), engine)


def training_pass(setting: Setting, rollouts: Rollouts, mode: str, temperature: float) -> torch.Tensor:
    """Log-probabilities (B, L) of the completions by the forward pass that training uses."""
    completion = rollouts.completion_ids
    prompt = torch.stack([torch.full_like(setting.class_ids, WORDS.bos), setting.class_ids], dim=1)
    kept = torch.arange(completion.shape[1]) < rollouts.lengths[:, None]
    mask = torch.cat([torch.ones_like(prompt), kept.long()], dim=1)
    with torch.no_grad():
        output = setting.policy.model(
            input_ids=torch.cat([prompt, completion], dim=1),
            attention_mask=mask,
            completion_ids=completion,
            mesh_embeds=setting.mesh_embeds,
            mesh_index=setting.mesh_index,
            grammar_mode=mode,
            temperature=temperature,
        )
    return output.log_probs.masked_fill(~kept, 0.0)


# ------------------------------------------------------------------ one distribution


@pytest.mark.parametrize("mode", ["strict", "released", "fork"])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_sampling_and_training_agree_on_log_probabilities(setting, mode, temperature):
    rollouts = setting.sample(mode=mode, temperature=temperature)
    again = training_pass(setting, rollouts, mode, temperature)
    torch.testing.assert_close(rollouts.log_probs, again, atol=1e-4, rtol=0)
    # The comparison says something: tokens are neither certain nor equally likely.
    per_row = rollouts.log_probs.sum(dim=1)
    assert per_row.std() > 1
    other = training_pass(setting, rollouts, mode, temperature * 1.1)
    assert (rollouts.log_probs - other).abs().max() > 0.01


def test_log_probabilities_agree_in_the_released_grammar_beyond_its_early_end(setting):
    """There a rig can end one SkinToken early or be empty: rows that strict sampling never gives."""
    rollouts = setting.sample(mode="released", temperature=1.5)
    rigs = [read_rollout(ids, WORDS.class_none, WORDS) for ids in rollouts.rows()[0]]
    assert any(rig is None for rig, done in zip(rigs, rollouts.complete.tolist(), strict=True) if done)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_equal_a_plain_sampler_without_cache(setting, temperature):
    """The reference: one row at a time, the whole sequence each time, the whole vocabulary masked."""
    rollouts = setting.sample(temperature=temperature, limit=60)
    grammar = Grammar(WORDS, "strict")
    uniforms = row_uniforms(row_seeds(ROWS, 7), 60)
    for row in range(0, ROWS, 5):
        ids = [WORDS.bos, int(setting.class_ids[row])]
        state = grammar.start(1, torch.device("cpu"))
        embeds = setting.mesh_embeds[setting.mesh_index[row]][None]
        for position in range(60):
            logits = setting.policy.next_token_logits(embeds, torch.tensor([ids]))[0, -1].double()
            logits[~grammar.allowed(state)[0]] = -torch.inf
            if temperature == 0:
                token = int(logits.argmax())
            else:
                token = int((logits.softmax(0).cumsum(0) <= uniforms[row, position]).sum())
            ids.append(token)
            state = grammar.step(state, torch.tensor([token]))
            if token == WORDS.eos:
                break
        assert rollouts.rows()[0][row] == ids[2:]


def test_greedy_sampling_ignores_the_seed(setting):
    first, second = setting.sample(temperature=0, key=1), setting.sample(temperature=0, key=2)
    assert torch.equal(first.completion_ids, second.completion_ids)
    assert not torch.equal(setting.sample(key=1).completion_ids, setting.sample(key=2).completion_ids)


def test_the_likeliest_of_one_is_greedy(setting):
    greedy, first = setting.sample(temperature=0), setting.sample(top_k=1)
    assert torch.equal(greedy.completion_ids, first.completion_ids)
    # The log-probabilities stay those of the whole distribution.
    torch.testing.assert_close(greedy.log_probs, first.log_probs)
    assert (first.log_probs.sum(dim=1) < 0).all()


# ------------------------------------------------------------------ a row on its own


def same(part: Rollouts, whole: Rollouts, rows) -> bool:
    """Whether `part` holds the tokens and log-probabilities of `rows` of `whole`."""
    ids, log_probs = whole.rows()
    own_ids, own_log_probs = part.rows()
    index = range(ROWS)[rows] if isinstance(rows, slice) else rows
    return own_ids == [ids[row] for row in index] and all(
        np.allclose(own, log_probs[row], atol=1e-5) for own, row in zip(own_log_probs, index, strict=True)
    )


@pytest.mark.parametrize("batch_size", [5, ROWS, 1000])
def test_chunks_do_not_change_rows(setting, batch_size):
    assert same(setting.sample(batch_size=batch_size), setting.sample(), slice(None))


@pytest.mark.parametrize("rows", [slice(3, 4), slice(None, None, -1), slice(1, None, 3)])
def test_the_company_of_a_row_does_not_change_it(setting, rows):
    whole = setting.sample()
    order = list(range(ROWS))[rows]
    assert same(setting.sample(rows=order), whole, order)


@pytest.mark.parametrize(("share", "every"), [(0.0, 1), (0.5, 5), (1.0, 16)])
def test_dropping_finished_rows_does_not_change_the_others(setting, monkeypatch, share, every):
    whole = setting.sample()
    monkeypatch.setattr(plain, "_COMPACT_SHARE", share)
    monkeypatch.setattr(fast, "_CPU_SHARE", share)
    monkeypatch.setattr(plain, "LOOK_EVERY", every)
    assert same(setting.sample(), whole, slice(None))


def test_a_shared_prefix_is_as_good_as_one_of_ones_own(setting):
    whole = setting.sample()
    alone = sample_rigs(
        setting.sampler(),
        setting.mesh_embeds[setting.mesh_index],
        torch.arange(ROWS),
        setting.class_ids,
        max_new_tokens=LIMIT,
        seeds=row_seeds(ROWS, 7),
    )
    assert same(alone, whole, slice(None))


def test_a_lower_limit_gives_the_beginning(setting):
    long, short = setting.sample().rows()[0], setting.sample(limit=17).rows()[0]
    assert short == [row[:17] for row in long]


def test_the_class_and_the_mesh_matter(setting):
    """Same seed, one thing changed: the log-probability of the first token moves."""

    def first(mesh: int, class_id: int) -> float:
        rollouts = sample_rigs(
            setting.sampler(),
            setting.mesh_embeds,
            torch.tensor([mesh]),
            torch.tensor([class_id]),
            max_new_tokens=1,
            seeds=[5],
        )
        return rollouts.log_probs[0, 0].item()

    base = first(0, WORDS.class_none)
    assert first(0, WORDS.class_none) == base
    assert abs(first(1, WORDS.class_none) - base) > 1e-6
    assert abs(first(0, WORDS.class_id("vroid")) - base) > 1e-6


# ------------------------------------------------------------------ given skeletons

# Skeletons of the three meshes: 1, 3 and 8 joints, chains and branches; 4, 17 and 28 tokens.
SKELETONS = [
    tuple(tokenize_skeleton(joints, parents, None, WORDS)[2:])
    for joints, parents in (
        (np.zeros((1, 3)), [-1]),
        (np.linspace(-0.8, 0.8, 9).reshape(3, 3), [-1, 0, 0]),
        (np.linspace(-0.9, 0.9, 24).reshape(8, 3), [-1, *range(7)]),
    )
]
JOINTS = (1, 3, 8)
MODES = ["strict", "released", "fork"]


@pytest.mark.parametrize("mode", MODES)
def test_of_a_given_skeleton_only_the_skin_is_sampled(setting, mode):
    rollouts = setting.sample(mode=mode, skeletons=SKELETONS)
    assert rollouts.complete.all()
    for row, ids in enumerate(rollouts.rows()[0]):
        skin = JOINTS[row % 3] * WORDS.tokens_per_skin - (mode == "released")
        assert len(ids) == skin + 1
        assert ids[-1] == WORDS.eos
        lowest = WORDS.skeleton_eos if mode == "released" else WORDS.skin_first
        assert all(lowest <= token < WORDS.eos for token in ids[:-1])
    assert rollouts.completion_ids.shape[1] <= 8 * WORDS.tokens_per_skin + 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_given_skeletons_have_the_same_log_probabilities_in_training(setting, mode, temperature):
    rollouts = setting.sample(mode=mode, temperature=temperature, skeletons=SKELETONS)
    given = [SKELETONS[mesh] for mesh in setting.mesh_index.tolist()]
    ids, lengths = training_rows(setting.class_ids, given, rollouts.completion_ids, WORDS)
    with torch.no_grad():
        output = setting.policy.model(
            input_ids=ids,
            completion_ids=rollouts.completion_ids,
            prompt_lengths=lengths,
            mesh_embeds=setting.mesh_embeds,
            mesh_index=setting.mesh_index,
            grammar_mode=mode,
            temperature=temperature,
        )
    kept = torch.arange(rollouts.completion_ids.shape[1]) < rollouts.lengths[:, None]
    torch.testing.assert_close(
        rollouts.log_probs, output.log_probs.masked_fill(~kept, 0.0), atol=1e-5, rtol=0
    )
    assert rollouts.log_probs.sum(dim=1).std() > 1


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("every", [1, 16])
def test_given_skeletons_of_other_lengths_in_the_batch_change_nothing(
    setting, monkeypatch, temperature, every
):
    """The same tokens and log-probabilities as one row at a time, whenever finished rows leave the batch."""
    monkeypatch.setattr(plain, "LOOK_EVERY", every)
    whole = setting.sample(skeletons=SKELETONS, temperature=temperature)
    for batch_size in (1, 5):
        parts = setting.sample(skeletons=SKELETONS, temperature=temperature, batch_size=batch_size)
        assert same(parts, whole, slice(None))


def test_a_skeleton_given_to_some_meshes(setting):
    """The others write theirs, with the tokens that they would get alone."""
    mixed = setting.sample(skeletons=[(), SKELETONS[1], ()])
    free, given = setting.sample(), setting.sample(skeletons=SKELETONS)
    for row, ids in enumerate(mixed.rows()[0]):
        assert ids == (given if row % 3 == 1 else free).rows()[0][row]


def test_a_given_skeleton_matters(setting):
    other = [SKELETONS[0], SKELETONS[1], tuple((t + 1) % 16 if t < 16 else t for t in SKELETONS[2])]
    first, second = setting.sample(skeletons=SKELETONS), setting.sample(skeletons=other)
    rows = slice(2, None, 3)
    assert not torch.equal(first.completion_ids[rows], second.completion_ids[rows])
    assert torch.equal(first.completion_ids[0::3], second.completion_ids[0::3])


def test_a_given_skeleton_has_to_fit(setting):
    # 256 positions - 8 of the mesh - 2 - 28 tokens of the skeleton = 218; 8 joints need 17. 70 joints in a
    # chain take 211 tokens and leave 35 for 141.
    assert setting.sample(skeletons=SKELETONS, limit=10_000).complete.all()
    assert not setting.sample(skeletons=SKELETONS, limit=6).complete[1::3].any()
    long = tuple(tokenize_skeleton(np.zeros((70, 3)), np.arange(70) - 1, None, WORDS)[2:])
    with pytest.raises(ValueError, match="max_new_tokens 120 must be between 1 and 35 for this model"):
        setting.sample(skeletons=[SKELETONS[0], long, SKELETONS[2]])


# ------------------------------------------------------------------ whole or invalid


def test_complete_rows_are_rigs_and_only_the_limit_makes_others(policy, engine):
    """The untrained policy: about nine rigs in ten end within the limit."""
    rows = 200
    rollouts = sample_rigs(
        make_engine(policy, engine),
        torch.zeros(1, tiny.MESH_TOKENS, 32),
        torch.zeros(rows, dtype=torch.long),
        torch.full((rows,), WORDS.class_none),
        max_new_tokens=100,
        seeds=row_seeds(rows, 3),
    )
    complete = rollouts.complete.tolist()
    assert 20 < sum(complete) < rows - 20
    ids, log_probs = rollouts.rows()
    for row, values, done in zip(ids, log_probs, complete, strict=True):
        assert len(values) == len(row)
        rig = read_rollout(row, WORDS.class_none, WORDS)
        if not done:
            assert rig is None
            assert len(row) == 100
            assert WORDS.eos not in row
            continue
        assert rig is not None
        assert row.index(WORDS.eos) == len(row) - 1
        joints = len(rig.joints)
        assert joints >= 1
        assert rig.codes.shape == (joints, WORDS.tokens_per_skin)
        assert rig.codes.min() >= 0
        assert rig.codes.max() < WORDS.codebook
        assert rig.parents[0] == -1
        assert all(0 <= parent < joint for joint, parent in enumerate(rig.parents[1:], start=1))
        assert np.abs(rig.joints).max() <= 1
    # Beyond its end a row is padding of probability one.
    beyond = torch.arange(rollouts.completion_ids.shape[1]) >= rollouts.lengths[:, None]
    assert (rollouts.completion_ids[beyond] == WORDS.pad).all()
    assert (rollouts.log_probs[beyond] == 0).all()


def test_the_batch_ends_with_its_last_row(setting):
    whole = setting.sample()
    rows = whole.complete.nonzero().flatten().tolist()[:2]
    rollouts = setting.sample(rows=rows, limit=tiny.POSITIONS - tiny.MESH_TOKENS - PROMPT_LENGTH)
    assert rollouts.complete.all()
    # At most one look (every 16 tokens) after the end, however far the limit.
    assert 0 <= rollouts.completion_ids.shape[1] - int(rollouts.lengths.max()) < 16


# ------------------------------------------------------------------ precision, misuse


def test_bfloat16_weights_sample_rigs_close_to_their_training_pass(setting):
    setting.policy.model.to(torch.bfloat16)
    setting.mesh_embeds = setting.mesh_embeds.to(torch.bfloat16)
    rollouts = setting.sample()
    assert rollouts.log_probs.dtype == torch.float32
    assert rollouts.complete.any()
    # Eight bits of mantissa at logits of a few units: differences of hundredths.
    again = training_pass(setting, rollouts, "strict", 1.0)
    assert (rollouts.log_probs - again).abs().mean() < 0.001


def test_the_model_is_left_as_it_was(setting):
    for mode in (True, False):
        setting.policy.model.train(mode)
        assert not setting.sample(limit=4).log_probs.requires_grad
        assert setting.policy.model.training is mode


def test_seeds_are_many_and_fixed():
    seeds = row_seeds(1000, 42, 3, 0)
    assert len(set(seeds)) == 1000
    assert seeds[:10] == row_seeds(10, 42, 3, 0)
    assert not set(seeds) & set(row_seeds(1000, 42, 4, 0))
    # 1, 23 is another key than 12, 3.
    assert not set(row_seeds(5, 1, 23)) & set(row_seeds(5, 12, 3))
    assert all(0 <= seed < 2**63 for seed in seeds)


@pytest.mark.parametrize("limit", [0, 247])
def test_limits_that_do_not_fit_are_refused(setting, limit):
    # 256 positions - 8 of the mesh - <bos> - class = 246
    with pytest.raises(ValueError, match=r"must be between 1 and 246 for this model"):
        setting.sample(limit=limit)


def test_every_row_needs_a_mesh_a_class_and_a_seed(setting):
    with pytest.raises(ValueError, match="2 seeds"):
        sample_rigs(
            setting.sampler(),
            setting.mesh_embeds,
            torch.tensor([0, 1, 2]),
            torch.full((2,), WORDS.class_none),
            max_new_tokens=4,
            seeds=[1, 2],
        )
