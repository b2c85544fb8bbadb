"""Memory of a training process, estimated from shapes: against what torch keeps, and worked by hand."""

import pytest
import torch

from policy.bundle import RigPolicy
from rl.preflight.launch import Launch, StepBatch
from rl.preflight.memory_need import activation_bytes, host_memory, training_memory
from rl.preflight.model_size import ModelSize, model_size
from tests.rl import tiny
from tests.rl.training_runs import Run

# The released sizes: 444 million weights, VAE 122 million.
RELEASED = ModelSize(
    language=415_000_000,
    encoder=29_000_000,
    trained=415_000_000,
    adapters=0,
    vae=122_000_000,
    vae_width=768,
    layers=28,
    heads=16,
    kv_heads=8,
    head_dim=128,
    hidden=896,
    inner=3072,
    vocabulary=33_036,
    codebook=32_768,
    tokens_per_skin=4,
    prefix=514,
)


def test_sizes_from_headers_are_those_of_the_loaded_policy(make_recipe, policy):
    size = model_size(make_recipe().policy)
    assert size.language == sum(p.numel() for p in policy.model.transformer.parameters())
    assert size.model == sum(p.numel() for p in policy.model.parameters())
    assert size.trained == size.language
    assert size.vae == sum(p.numel() for p in policy.skin_vae.parameters())
    assert size.prefix == tiny.MESH_TOKENS + 2


def test_trained_weights_with_lora_and_with_the_encoder(make_recipe):
    changes = {"policy.lora": {"rank": 4, "target_modules": ["q_proj", "down_proj"]}}
    run = Run(make_recipe(changes))
    trained = sum(p.numel() for p in run.trainer().model.parameters() if p.requires_grad)
    size = model_size(run.recipe.policy)
    assert size.trained == size.adapters == trained
    whole = model_size(make_recipe({"policy.train_mesh_encoder": True}).policy)
    assert whole.trained == whole.model


@pytest.mark.parametrize("lengths", [(40, 40), (90, 20)])
def test_activations_are_what_the_packed_pass_keeps(policy: RigPolicy, lengths):
    """Bytes that autograd saves, each storage once, without weights; the head's are counted apart."""
    model, words = policy.model.train(), policy.vocabulary
    model.mesh_encoder.requires_grad_(False)
    model.output_proj.requires_grad_(False)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    count = max(lengths)
    completions = torch.randint(0, words.bins, (len(lengths), count))
    prompt = torch.tensor([[words.bos, words.class_id(None)]]).expand(len(lengths), -1)
    ids = torch.cat([prompt, completions], dim=1)
    held = []  # keeps storages alive, so that none has the address of another
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (held.append(t), pack(t))[1], lambda t: t):
        hidden, _ = model._packed_hidden(
            ids,
            None,
            torch.zeros(1, tiny.MESH_TOKENS, 32),
            torch.zeros(len(lengths), dtype=torch.int64),
            completions,
            None,
            torch.tensor(lengths),
        )
    tokens = len(hidden)
    size = ModelSize(
        **{
            **RELEASED.__dict__,
            "layers": 2,
            "heads": 2,
            "kv_heads": 1,
            "head_dim": 16,
            "hidden": 32,
            "inner": 64,
        }
    )
    assert sum(kept.values()) == pytest.approx(tokens * activation_bytes(size, 4, False), rel=0.12)


def test_the_released_size_by_hand():
    """docs/performance.md#memory: 1.2 MB per token, 9.3 GB for a group of 24 x 300 tokens behind 514."""
    per_token = activation_bytes(RELEASED, 2, checkpointing=False)
    # 28 layers x 2 bytes x (4 x 896 + 3 x 2048 + 3 x 1024 + 3 x 3072)
    assert per_token == 28 * 2 * 22_016
    assert (24 * 300 + 514) * per_token == pytest.approx(9.3e9, rel=0.03)
    assert activation_bytes(RELEASED, 2, checkpointing=True) < per_token / 10


def test_parts_of_the_released_recipe(make_recipe):
    recipe = make_recipe(
        {
            "train.bf16": True,
            "train.beta": 0.1,
            "train.num_generations": 24,
            "train.per_device_train_batch_size": 24,
            "train.gradient_accumulation_steps": 8,
            "workers": {"backend": "ray", "decoder_device": "cuda", "decoder_dtype": "bfloat16"},
        }
    )
    recipe.train["max_completion_length"] = 2048  # the tiny policy has no room for it
    batch = StepBatch.of(recipe.train, 1)
    assert (batch.rows, batch.groups, batch.generations) == (192, 8, 1.0)
    need = training_memory(recipe, RELEASED, batch, Launch(), cuda=True)
    assert need.fixed["weights"] == 4 * 444_000_000
    assert need.fixed["optimiser"] == 8 * 415_000_000
    # 192 rows x 512 positions and 8 prefixes of 514, 114,688 bytes each.
    assert need.peak["keys and values"] == 114_688 * (192 * 512 + 8 * 514)
    assert 25e9 < need.total < 48e9
    half = training_memory(recipe, RELEASED, StepBatch.of(recipe.train, 2), Launch(2, 2, "zero2"), cuda=True)
    assert half.fixed["optimiser"] == 4 * 415_000_000
    assert half.fixed["gradients"] == 2 * 415_000_000
    lora = make_recipe({"policy.lora": {}, "train.beta": 0.1})
    assert "reference policy" not in training_memory(lora, RELEASED, batch, Launch(), cuda=True).fixed


def test_host_memory_counts_processes_and_actors(make_recipe):
    recipe = make_recipe({"workers": {"backend": "ray", "count": 2}})
    size = model_size(recipe.policy)
    need = training_memory(recipe, size, StepBatch.of(recipe.train, 1), Launch(), cuda=False)
    one = host_memory(recipe, size, need, Launch(), cuda=False)
    two = host_memory(recipe, size, need, Launch(2, 2), cuda=False)
    assert two - one > 1e9
    assert host_memory(make_recipe(), size, need, Launch(), cuda=False) < one - 1e9
