"""The seams to TRL: log-probabilities, rollouts, and the mesh schedule of a run."""

import pytest
import torch

from policy.tokenrig.packed_pass import packed_hidden_states
from rewards.worker import INVALID
from rl.mesh_schedule import mesh_schedule, schedule_length
from rl.trainer import RigGRPOTrainer
from tests.rl import tiny
from tests.rl.training_runs import FakeService, Run

WORDS = tiny.VOCABULARY

# Deprecations of transformers, which TRL has to fix.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture
def batch(make_recipe):
    """A trainer, and a batch of rollouts as TRL makes it: (trainer, inputs)."""
    trainer = Run(make_recipe()).trainer()
    prompts = [{"prompt": trainer.bank.prompt(k)} for k in (0, 0, 0, 0, 2, 2, 2, 2)]
    trainer.model.train()
    return trainer, trainer._generate_and_score_completions(prompts)


def seam(trainer: RigGRPOTrainer, inputs: dict[str, torch.Tensor], **options):
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    length = inputs["completion_ids"].shape[1]
    return trainer._get_per_token_logps_and_entropies(trainer.model, ids, mask, length, **options)


def test_the_seam_equals_a_direct_forward_pass(batch):
    trainer, inputs = batch
    log_probs, entropies, auxiliary = seam(trainer, inputs, compute_entropy=True)
    assert auxiliary is None
    assert log_probs.shape == entropies.shape == inputs["completion_ids"].shape
    for row, mesh in enumerate((0, 0, 0, 0, 2, 2, 2, 2)):
        length = int(inputs["completion_mask"][row].sum())
        completion = inputs["completion_ids"][row : row + 1, :length]
        sample = trainer.bank.samples[mesh]
        direct = trainer.model(
            input_ids=torch.cat([torch.tensor([[WORDS.bos, trainer.bank.class_id]]), completion], dim=1),
            points=torch.from_numpy(sample.points)[None],
            normals=torch.from_numpy(sample.normals)[None],
            completion_ids=completion,
        )
        torch.testing.assert_close(log_probs[row, :length], direct.log_probs[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(entropies[row, :length], direct.entropies[0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("batch_size", [1, 3, 8, None])
def test_batches_do_not_change_the_seam(batch, batch_size):
    trainer, inputs = batch
    whole, no_entropies, _ = seam(trainer, inputs)
    parts, _, _ = seam(trainer, inputs, batch_size=batch_size)
    assert no_entropies is None
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "changes", [{}, {"train.temperature": 0.7, "policy.grammar": "released"}, {"policy.grammar": "fork"}]
)
def test_the_trained_distribution_is_the_sampled_one(make_recipe, changes):
    trainer = Run(make_recipe(changes)).trainer()
    trainer.model.train()
    inputs = trainer._generate_and_score_completions([{"prompt": trainer.bank.prompt(1)} for _ in range(8)])
    log_probs, _, _ = seam(trainer, inputs)
    mask = inputs["completion_mask"].bool()
    sampled = inputs["sampling_per_token_logps"]
    torch.testing.assert_close(log_probs[mask], sampled[mask], atol=1e-4, rtol=0)


def test_prompt_ids_name_the_mesh(batch):
    trainer, inputs = batch
    assert inputs["prompt_ids"].tolist() == [
        [WORDS.size + mesh, WORDS.bos, WORDS.class_id("articulation")] for mesh in (0, 0, 0, 0, 2, 2, 2, 2)
    ]
    inputs["prompt_ids"][0, 0] = WORDS.size + len(trainer.bank)
    with pytest.raises(ValueError, match="mesh handle"):
        seam(trainer, inputs)


def test_a_group_shares_its_poses_and_steps_do_not(make_recipe):
    service = FakeService(lambda row: row / 4)
    Run(make_recipe({"train.max_steps": 3, "data.train_count": 4}), service).optimise()
    assert [rows for _, rows, _ in service.submitted] == [4] * 6  # 8 rollouts: two groups of 4 a step
    seeds = [seed for _, _, seed in service.submitted]
    assert len(set(seeds)) == 6


@pytest.mark.parametrize(
    "changes", [{}, {"train.gradient_accumulation_steps": 2, "train.steps_per_generation": 1}]
)
def test_no_two_batches_are_equal(make_recipe, changes):
    """With one mesh and a policy that does not move, only sampling differs between batches."""
    service = FakeService(lambda row: row / 8)
    sampled = []
    service.score = lambda row, rig: (sampled.append(rig), INVALID)[1]
    still = {"data.train_count": 1, "train.max_steps": 2, "train.learning_rate": 1e-12}
    Run(make_recipe({**still, **changes}), service).optimise()
    rigs = [tuple(rig.codes.ravel()) for rig in sampled if rig is not None]
    assert len(rigs) > 8
    assert len(set(rigs)) == len(rigs)


def test_one_mesh_is_enough_for_several_groups(make_recipe):
    """Two groups of four a step, both of the only mesh: each is compared within itself."""
    service = FakeService(lambda row: row / 8)
    Run(make_recipe({"data.train_count": 1, "train.max_steps": 3}), service).optimise()
    assert [(mesh, rows) for mesh, rows, _ in service.submitted] == [(0, 8)] * 3


@pytest.mark.parametrize(
    ("changes", "groups"),
    [
        ({}, 2 * 5),  # 8 rows a step, groups of 4
        ({"train.gradient_accumulation_steps": 3}, 6 * 5),
        ({"train.num_iterations": 2}, 2 * 3),  # five updates take three batches
        ({"train.steps_per_generation": 2}, 4 * 3),  # sixteen rows every other step
    ],
)
def test_a_run_samples_as_many_groups_as_its_schedule_has(make_recipe, changes, groups):
    service = FakeService(lambda row: row / 24)
    run = Run(make_recipe({"train.max_steps": 5, "data.train_count": 7, **changes}), service)
    trainer = run.trainer()
    assert len(trainer.train_dataset) == groups == schedule_length(run.args)
    trainer.train()
    assert trainer.state.global_step == 5
    assert sum(rows for _, rows, _ in service.submitted) == 4 * groups
    expected = mesh_schedule(run.meshes.train, groups, seed=42)
    served = [mesh for mesh, rows, _ in service.submitted for _ in range(rows // 4)]
    assert sorted(served) == sorted(expected)


# ------------------------------------------------------------------ given skeletons

GIVEN = {"data.skeleton": "given", "data.points": 64}


@pytest.fixture
def given_batch(make_recipe):
    """As `batch`, of three meshes whose skeletons are given: prompts of unequal length."""
    return make_given_batch(make_recipe(GIVEN))


def make_given_batch(recipe):
    trainer = Run(recipe).trainer()
    assert len({len(trainer.given[k].tokens) for k in (0, 1, 2)}) == 3
    trainer.model.train()
    prompts = [{"prompt": trainer.bank.prompt(k)} for k in (0, 0, 0, 0, 1, 1, 2, 2)]
    return trainer, trainer._generate_and_score_completions(prompts)


MESHES = (0, 0, 0, 0, 1, 1, 2, 2)


def test_of_given_skeletons_trl_sees_the_skin_only(given_batch):
    trainer, inputs = given_batch
    prompt = [WORDS.bos, WORDS.class_id("articulation")]
    assert inputs["prompt_ids"].tolist() == [[WORDS.size + mesh, *prompt] for mesh in MESHES]
    for row, mesh in enumerate(MESHES):
        joints = len(trainer.given[mesh].joints)
        ids = inputs["completion_ids"][row][inputs["completion_mask"][row].bool()].tolist()
        assert len(ids) == joints * WORDS.tokens_per_skin + 1
        assert all(WORDS.skin_first <= token < WORDS.eos for token in ids[:-1])
    lengths = trainer._metrics["train"]
    assert lengths["completions/max_length"] == [float(inputs["completion_mask"].sum(dim=1).max())]
    assert lengths["completions/clipped_ratio"] == [0.0]
    assert lengths["rig/valid"] == [1.0]
    assert lengths["rig/joints"] == [sum(len(trainer.given[mesh].joints) for mesh in MESHES) / 8]


def test_the_skin_of_given_skeletons_is_trained_as_it_was_sampled(given_batch):
    trainer, inputs = given_batch
    log_probs, entropies, _ = seam(trainer, inputs, compute_entropy=True)
    mask = inputs["completion_mask"].bool()
    torch.testing.assert_close(log_probs[mask], inputs["sampling_per_token_logps"][mask], atol=1e-5, rtol=0)
    for batch_size in (1, 3):
        parts, _, _ = seam(trainer, inputs, batch_size=batch_size)
        torch.testing.assert_close(parts[mask], log_probs[mask], atol=1e-5, rtol=0)
    # Against the whole rig as a completion: the skin's log-probabilities, and nothing of the skeleton's.
    for row, mesh in enumerate(MESHES):
        skeleton = torch.tensor([trainer.given[mesh].tokens])
        skin = inputs["completion_ids"][row][mask[row]][None]
        whole = torch.cat([torch.tensor([[WORDS.bos, trainer.bank.class_id]]), skeleton, skin], dim=1)
        direct = trainer.model(
            input_ids=whole,
            completion_ids=whole[:, 2:],
            mesh_embeds=trainer.mesh_embeds(trainer.model, torch.tensor([mesh])),
        )
        for own, found in ((log_probs, direct.log_probs), (entropies, direct.entropies)):
            torch.testing.assert_close(
                own[row][mask[row]], found[0, skeleton.shape[1] :], atol=1e-5, rtol=1e-5
            )


def backward_of_loss(trainer, inputs) -> None:
    """Through TRL's own loss."""
    inputs["advantages"] = torch.tensor([1.0, -1.0] * 4)
    assert "ref_per_token_logps" in inputs
    trainer.current_gradient_accumulation_steps = 1  # set by the training loop
    trainer.compute_loss(trainer.model, inputs).backward()


def test_the_loss_has_no_gradient_at_a_given_skeleton(make_recipe):
    """Hidden states that predict a token of the prompt get no gradient."""
    trainer, inputs = make_given_batch(make_recipe({**GIVEN, "log_probs.engine": "plain"}))
    kept = []
    hook = trainer.model.transformer.model.norm.register_forward_hook(
        lambda module, args, output: (output.retain_grad(), kept.append(output))[0]
    )
    try:
        backward_of_loss(trainer, inputs)
    finally:
        hook.remove()
    gradient = kept[-1].grad.abs().sum(dim=2)
    for row, mesh in enumerate(MESHES):
        first = tiny.MESH_TOKENS + 2 + len(trainer.given[mesh].tokens) - 1
        skin = len(trainer.given[mesh].joints) * WORDS.tokens_per_skin
        assert (gradient[row, :first] == 0).all()
        assert (gradient[row, first : first + skin] > 0).all()
        assert (gradient[row, first + skin :] == 0).all()


def test_the_loss_has_gradients_at_the_skin_only_in_a_packed_pass(given_batch, monkeypatch):
    trainer, inputs = given_batch
    kept = []

    def keep(model, mesh_embeds, input_ids, rows):
        hidden = packed_hidden_states(model, mesh_embeds, input_ids, rows)
        hidden.retain_grad()
        kept.append((hidden, rows))
        return hidden

    monkeypatch.setattr("policy.tokenrig.modeling.packed_hidden_states", keep)
    backward_of_loss(trainer, inputs)
    ((hidden, rows),) = kept
    skins = [len(trainer.given[mesh].joints) * WORDS.tokens_per_skin for mesh in MESHES]
    predicting = torch.cat([rows.hidden_at[row, :skin] for row, skin in enumerate(skins)]).unique()
    # Every mesh's prefix is there once: the skins' first tokens are predicted by one token of each.
    assert len(predicting) == sum(skins) - len(MESHES) + 3
    assert hidden.grad.abs().sum(dim=1).nonzero().flatten().tolist() == predicting.tolist()


@pytest.mark.parametrize(
    "changes",
    [
        {"train.num_iterations": 2, "train.gradient_accumulation_steps": 2},
        {"policy.lora": {"rank": 2}, "train.beta": 0.1},
        {"policy.train_mesh_encoder": True, "policy.grammar": "fork", "train.gradient_checkpointing": True},
        {"rollout.batch_size": 3, "train.per_device_train_batch_size": 4, "data.train_count": 1},
    ],
)
def test_given_skeletons_train_in_every_setting(make_recipe, changes):
    # The scores of a random skin decoder are all equal, which would leave no advantage to learn from.
    service = FakeService(lambda row: row / 8)
    recipe = make_recipe({**GIVEN, "train.beta": 0.04, "train.learning_rate": 1e-2, **changes})
    run = Run(recipe, service)
    run.optimise()
    metrics = run.metrics()
    assert [row["step"] for row in metrics] == [1, 2]
    assert all(row["grad_norm"] > 0 for row in metrics)
    # A second pass over the same rollouts logs nothing of them.
    assert {row["rig/valid"] for row in metrics if "rig/valid" in row} == {1.0}
    assert metrics[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert all(row["entropy"] > 0 for row in metrics)


def test_rigs_with_given_skeletons_are_scored_with_their_exact_joints(make_recipe):
    service = FakeService(lambda row: row / 8)
    scored = []
    service.score = lambda row, rig: (scored.append(rig), INVALID)[1]
    run = Run(make_recipe({**GIVEN, "data.train_count": 1, "train.max_steps": 1}), service)
    trainer = run.trainer()
    trainer.train()
    truth = run.bank.samples[0].rig
    assert len(scored) == 8
    for rig in scored:
        assert (rig.joints == truth.joints).all()
        assert (rig.parents == truth.parents).all()
        assert rig.codes.shape == (len(truth.joints), WORDS.tokens_per_skin)
    assert len({tuple(rig.codes.ravel()) for rig in scored}) == 8
