"""Phase credit: advantages per token by hand, TRL's normalisation, the loss, and that it learns faster."""

import math

import numpy as np
import pytest
import torch

from rewards import REWARD_NAMES, RewardSettings
from rewards.guards import GUARD_NAMES
from rewards.settings import PARTS, parts_of
from rewards.worker import RolloutScore
from rl.bad_steps import describe_rows
from rl.phase_credit import Normalisation, after_skeleton, group_advantages, phase_advantages
from tests.rl import tiny
from tests.rl.training_runs import FakeService, Run, weights

WORDS = tiny.VOCABULARY
END, PAD, EOS = WORDS.skeleton_eos, WORDS.pad, WORDS.eos
PAPER = torch.tensor([5.0, 1.0, 1.0, 1.0])
PAIRS = Normalisation(2, "sum_then_normalize", "group")

# Deprecations of transformers, which TRL has to fix.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")

# ------------------------------------------------------------------ per-token advantages


def test_every_reward_of_the_project_has_one_phase_and_a_users_own_has_both():
    names = [name for part in PARTS.values() for name in part]
    assert sorted(names) == sorted((*REWARD_NAMES, *GUARD_NAMES))
    assert RewardSettings().reward_names == REWARD_NAMES
    assert parts_of("coverage") == ("skeleton",)
    assert parts_of("weight_locality") == ("skin",)
    assert parts_of("of_a_user") == ("skeleton", "skin")


def test_tokens_after_the_skeleton():
    rows = [
        [3, 4, 5, END, 30, 31, EOS, PAD],
        [3, 4, 5, 6, 7, 8, 9, 3],  # cut off within the skeleton
        [END, 30, EOS, PAD, PAD, PAD, PAD, PAD],
    ]
    skin = [[0, 0, 0, 0, 1, 1, 1, 1], [0] * 8, [0, 1, 1, 1, 1, 1, 1, 1]]
    assert after_skeleton(torch.tensor(rows), END).int().tolist() == skin


def test_advantages_by_hand():
    # skeleton: 5 · 0.2 + 1 = 2 and 5 · 0.6 + 1 = 4: mean 3, standard deviation √2 (of a sample of two)
    # skin: 0.9 + 0.5 = 1.4 and 0.5 + 0.5 = 1: mean 1.2, standard deviation 0.2 √2
    rewards = torch.tensor([[0.2, 1.0, 0.9, 0.5], [0.6, 1.0, 0.5, 0.5]])
    ids = torch.tensor([[3, 4, END, 30, EOS], [3, END, 31, EOS, PAD]])
    found = phase_advantages(rewards, PAPER, REWARD_NAMES, PAIRS, ids, END, 0)
    skeleton = 1 / (math.sqrt(2) + 1e-4)
    skin = 0.2 / (0.2 * math.sqrt(2) + 1e-4)
    expected = [[-skeleton] * 3 + [skin] * 2, [skeleton] * 2 + [-skin] * 3]
    torch.testing.assert_close(found.advantages, torch.tensor(expected))
    assert found.metrics == {"credit/skeleton_zero_std": 0.0, "credit/skin_zero_std": 0.0}


def test_guards_and_a_users_own_reward_by_hand():
    names = (*REWARD_NAMES, "joint_count_prior", "bone_influence", "of_a_user")
    rewards = torch.zeros(2, 7)
    rewards[0, 4], rewards[1, 5] = 1.0, 1.0  # the first has the joints, the second the weights
    rewards[0, 6] = 3.0
    ids = torch.tensor([[3, END, 30], [3, END, 30]])
    both = torch.cat([PAPER, torch.tensor([2.0, 2.0, 1.0])])
    found = phase_advantages(rewards, both, names, PAIRS, ids, END, 0).advantages
    # skeleton 2 · 1 + 3 = 5 against 0, skin 3 against 2 · 1: the first is better in both
    up = [2.5 / (2.5 * math.sqrt(2) + 1e-4), 0.5 / (0.5 * math.sqrt(2) + 1e-4)]
    torch.testing.assert_close(found[0], torch.tensor([up[0], up[0], up[1]]))
    torch.testing.assert_close(found[1], -found[0])


def test_a_process_gets_its_own_rows_and_groups_do_not_mix():
    rewards = torch.tensor([[0.0, 0, 0, 0], [1, 0, 0, 0], [9, 0, 1, 0], [9, 0, 3, 0]])
    ids = torch.tensor([[3, END, 30]] * 2)
    whole = phase_advantages(rewards, PAPER, REWARD_NAMES, PAIRS, ids.repeat(2, 1), END, 0)
    second = phase_advantages(rewards, PAPER, REWARD_NAMES, PAIRS, ids, END, 2)
    torch.testing.assert_close(second.advantages, whole.advantages[2:])
    assert second.metrics == whole.metrics == {"credit/skeleton_zero_std": 0.5, "credit/skin_zero_std": 0.5}
    assert second.advantages[:, :2].abs().max() == 0  # both have coverage 9
    assert second.advantages[1, 2] > 0.7 > -0.7 > second.advantages[0, 2]


def test_rigs_without_a_score_have_no_advantage_and_do_not_shift_the_others():
    nan = math.nan
    rewards = torch.tensor([[0.2, 1, 0.9, 0.5], [nan] * 4, [0.6, 1, 0.5, 0.5]])
    three = Normalisation(3, "sum_then_normalize", "group")
    ids = torch.tensor([[3, END, 30]] * 3)
    found = phase_advantages(rewards, PAPER, REWARD_NAMES, three, ids, END, 0).advantages
    assert found[1].tolist() == [0.0] * 3
    torch.testing.assert_close(found[0, 0], torch.tensor(-1 / (math.sqrt(2) + 1e-4)))
    torch.testing.assert_close(found[2], -found[0])
    # A reward that is not finite takes its group's advantages with it (`RewardRecord`).
    rewards[1] = torch.tensor([math.inf, 0.0, 0.0, 0.0])
    found = phase_advantages(rewards, PAPER, REWARD_NAMES, three, ids, END, 0).advantages
    assert found[:, 0].tolist() == [0.0] * 3
    assert found[:, 2].abs().min() > 0


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"train.scale_rewards": "batch"},
        {"train.scale_rewards": "none"},
        {"train.multi_objective_aggregation": "normalize_then_sum"},
    ],
)
def test_the_normalisation_is_trls(make_recipe, options):
    """With all rewards in one phase, advantages are those that TRL computes, unscored rows included."""
    values = iter(np.random.default_rng(0).random((8, 4)).tolist())
    service = FakeService(lambda row: None)

    def score(row, rig):
        numbers = next(values)
        if row in (1, 2):  # unscored, or no rig
            return FakeService.score(service, row, rig)
        return RolloutScore(dict(zip(REWARD_NAMES, numbers, strict=True)), valid=True)

    service.score = score
    trainer = Run(make_recipe(options), service).trainer()
    trainer.model.train()
    prompts = [{"prompt": trainer.bank.prompt(k)} for k in (0, 0, 0, 0, 2, 2, 2, 2)]
    batch = trainer._generate_and_score_completions(prompts)
    ours, _ = group_advantages(
        trainer._all_rewards,
        trainer.reward_weights,
        Normalisation(4, trainer.multi_objective_aggregation, trainer.scale_rewards),
    )
    assert trainer._all_rewards.isnan().any()
    assert batch["advantages"].abs().max() > 0.1
    torch.testing.assert_close(ours, batch["advantages"])


# ------------------------------------------------------------------ in the trainer


def two_scores(row, rig):
    """Better skeletons for later rows, better skins for earlier ones."""
    up = row / 4
    rewards = {"coverage": up, "containment": 0.5, "sparsity": 1 - up, "smoothness": 0.5}
    return RolloutScore(rewards, valid=rig is not None)


def service_of(score) -> FakeService:
    service = FakeService(lambda row: None)
    service.score = score
    return service


def test_the_trainers_batch_has_an_advantage_per_token(make_recipe):
    trainer = Run(make_recipe({"rewards.credit": "phase"}), service_of(two_scores)).trainer()
    trainer.model.train()
    batch = trainer._generate_and_score_completions([{"prompt": trainer.bank.prompt(0)} for _ in range(8)])
    ids, mask = batch["completion_ids"], batch["completion_mask"].bool()
    assert batch["advantages"].shape == ids.shape
    fours = Normalisation(4, "sum_then_normalize", "group")
    expected = phase_advantages(trainer._all_rewards, PAPER, REWARD_NAMES, fours, ids, END, 0)
    assert batch["advantages"].equal(expected.advantages)
    assert trainer._metrics["train"]["credit/skin_zero_std"] == [0.0]
    # A whole rig whose coverage is above its group's mean: its skeleton goes up, its skin down.
    whole = [row for row in range(8) if ids[row][mask[row]][-1] == EOS]
    high = next(row for row in whole if batch["advantages"][row, 0] > 0.5)
    end = int((ids[high] == END).nonzero())
    assert (batch["advantages"][high, : end + 1] > 0.5).all()
    assert (batch["advantages"][high, end + 1 :][mask[high, end + 1 :]] < 0).all()


def test_a_bad_step_lists_the_advantage_of_each_token():
    batch = {
        "completion_mask": torch.tensor([[1, 1, 1], [1, 1, 0]]),
        "completion_ids": torch.tensor([[3, END, 30], [3, END, PAD]]),
        "row_seed": torch.tensor([7, 8]),
        "rewards": torch.zeros(2, 1),
        "has_reward": torch.tensor([[True], [False]]),
        "advantages": torch.tensor([[1.0, 1.0, -2.0], [0.5, 0.5, 0.25]]),
    }
    first, second = describe_rows(batch, ["a", "b"], ["coverage"])
    assert first["advantage"] == [1.0, 1.0, -2.0]
    assert second["advantage"] == [0.5, 0.5]  # without padding
    (whole, _) = describe_rows({**batch, "advantages": torch.tensor([1.0, 2.0])}, ["a", "b"], ["coverage"])
    assert whole["advantage"] == 1.0


@pytest.mark.parametrize("loss", ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo"])
def test_every_loss_credits_each_token_with_its_own_advantage(make_recipe, monkeypatch, loss):
    """Where the advantage is 0, a log-probability has no gradient; elsewhere it has that of its sign."""
    more = {"train.epsilon_high": 5.0} if loss == "cispo" else {}
    still = {"rewards.credit": "phase", "train.beta": 0.0, "train.loss_type": loss}
    gradient, inputs = gradient_of(Run(make_recipe({**still, **more}), service_of(two_scores)), monkeypatch)
    mask, skin = inputs["completion_mask"].bool(), after_skeleton(inputs["completion_ids"], END)
    assert (gradient[mask & ~skin] == 0).all()
    assert (gradient[mask & skin].sign() == -inputs["advantages"][mask & skin].sign()).all()


def test_one_ratio_per_rig_would_mix_the_phases(make_recipe, monkeypatch):
    """Why sequence-level ratios are refused."""
    still = {"train.beta": 0.0, "train.importance_sampling_level": "sequence"}
    gradient, inputs = gradient_of(Run(make_recipe(still), service_of(two_scores)), monkeypatch)
    skin = after_skeleton(inputs["completion_ids"], END)
    rows = skin.any(dim=1) & (gradient.abs().sum(dim=1) > 0)
    assert (gradient[rows] != 0)[(inputs["completion_mask"].bool() & ~skin)[rows]].all()


def gradient_of(run: Run, monkeypatch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Of the loss, with respect to the log-probabilities, if only SkinTokens have an advantage."""
    trainer = run.trainer()
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    inputs = trainer._generate_and_score_completions([{"prompt": trainer.bank.prompt(0)} for _ in range(8)])
    skin = after_skeleton(inputs["completion_ids"], END)
    sign = torch.tensor([1.0, -1.0] * 4)[:, None]
    inputs["advantages"] = torch.where(skin, sign, 0.0)
    leaf = inputs["sampling_per_token_logps"].clone().requires_grad_()
    monkeypatch.setattr(
        trainer,
        "_get_per_token_logps_and_entropies",
        lambda *_, **__: (leaf, torch.zeros_like(leaf), None),
    )
    trainer._last_log_probs = leaf.detach()
    trainer.compute_loss(trainer.model, inputs).backward()
    return leaf.grad, inputs


def test_packed_and_plain_passes_and_micro_batches_give_one_update(make_recipe, tmp_path):
    """Advantages per token survive TRL's shuffling and splitting, and both passes see the same ones."""
    shapes = [
        {"log_probs.engine": "plain"},
        {"log_probs.engine": "fast"},
        {"train.per_device_train_batch_size": 4, "train.gradient_accumulation_steps": 2},
    ]
    moved = []
    for number, shape in enumerate(shapes):
        changes = {
            "rewards.credit": "phase",
            "train.max_steps": 1,
            "train.loss_type": "dapo",
            "train.optim": "sgd",
            "train.max_grad_norm": 1e9,
            "train.learning_rate": 0.1,
            "output_dir": str(tmp_path / str(number)),
        }
        run = Run(make_recipe({**changes, **shape}), service_of(two_scores))
        moved.append({name: new - run.before[name] for name, new in weights(run.optimise()).items()})
        (line,) = run.metrics()
        assert line["credit/skeleton_zero_std"] == 0.0
        assert line["kl"] == pytest.approx(0, abs=1e-6)
    largest = max(float(change.abs().max()) for change in moved[0].values())
    assert largest > 1e-3
    for other in moved[1:]:
        for name, change in moved[0].items():
            torch.testing.assert_close(other[name], change, atol=2e-3 * largest, rtol=0)


# ------------------------------------------------------------------ it learns faster


def test_it_learns_faster_where_the_phases_rewards_are_independent():
    """A policy of eight skeleton and eight skin tokens, each a choice of one of four, one of which is right.

    Coverage is the share of right skeleton tokens, sparsity that of right skin tokens. The total hides the
    skin's fifth behind the skeleton's chance, so that its tokens learn at random; credited by phase, they
    learn as the skeleton does. Deterministic: ten seeds, each the same rollouts at the start.
    """
    ends = {credit: [learn(credit, seed) for seed in range(10)] for credit in ("rig", "phase")}
    skeleton = {credit: sum(row[0] for row in rows) / 10 for credit, rows in ends.items()}
    skin = {credit: sum(row[1] for row in rows) / 10 for credit, rows in ends.items()}
    assert all(phase[1] > rig[1] + 0.1 for rig, phase in zip(ends["rig"], ends["phase"], strict=True))
    assert skin["rig"] < 0.6 < 0.85 < skin["phase"]
    assert skeleton["phase"] > skeleton["rig"] - 0.02


def learn(credit: str, seed: int, steps: int = 60, group: int = 16) -> tuple[float, float]:
    """The probabilities of right skeleton and skin tokens after some steps of gradient ascent."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.zeros(16, 4, requires_grad=True)
    options = Normalisation(group, "sum_then_normalize", "group")
    for _ in range(steps):
        log_probs = logits.log_softmax(dim=1)
        chosen = torch.multinomial(log_probs.detach().exp(), group, True, generator=generator).T
        right = (chosen == 0).float()
        rewards = torch.stack(
            [right[:, :8].mean(1), torch.ones(group), right[:, 8:].mean(1), torch.ones(group)], dim=1
        )
        if credit == "phase":
            ids = torch.cat([chosen[:, :7], torch.full((group, 1), END), chosen[:, 8:]], dim=1)
            advantages = phase_advantages(rewards, PAPER, REWARD_NAMES, options, ids, END, 0).advantages
        else:
            advantages = group_advantages(rewards, PAPER, options)[0][:, None]
        of_tokens = log_probs[torch.arange(16), chosen]
        loss = -(advantages * of_tokens).mean(dim=1).mean()
        (gradient,) = torch.autograd.grad(loss, logits)
        with torch.no_grad():
            logits -= 4.0 * gradient
    probability = logits.detach().softmax(dim=1)[:, 0]
    return float(probability[:8].mean()), float(probability[8:].mean())
