"""The packed pass against the repeated one: values and gradients of all weights, in every setting."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor

from policy.tokenrig.configuration import TokenRigConfig
from policy.tokenrig.mesh_encoder import MeshEncoderConfig
from policy.tokenrig.modeling import TokenRigForCausalLM
from policy.tokenrig.packed_pass import pack_rows
from policy.tokens.grammar import Grammar
from policy.tokens.vocabulary import Vocabulary
from tests.policy.random_completions import random_completions

VOCABULARY = Vocabulary(bins=16, codebook=64, tokens_per_skin=2)
MESH_TOKENS = 5


def make_model(**options: Any) -> TokenRigForCausalLM:
    torch.manual_seed(0)
    settings = {
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 10,
        "intermediate_size": 37,
        "max_position_embeddings": 128,
        "initializer_range": 0.2,  # so that attention is far from uniform
    }
    encoder = MeshEncoderConfig(width=16, heads=2, num_encoder_layers=1, token_num=MESH_TOKENS)
    config = TokenRigConfig(
        vocabulary=VOCABULARY.to_dict(), mesh_encoder=encoder.to_dict(), **{**settings, **options}
    )
    model = TokenRigForCausalLM(config)
    for name, weight in model.named_parameters():
        if name.endswith("norm.weight"):
            torch.nn.init.normal_(weight, mean=1.0, std=0.3)
    return model.train()


@dataclass
class Batch:
    """Rows as the trainer passes them, and the same rows one by one for comparison."""

    inputs: dict[str, Any]
    mask: Tensor

    def rows(self, chosen: list[int]) -> dict[str, Any]:
        kept = {}
        for key, value in self.inputs.items():
            kept[key] = value[chosen] if key not in ("points", "normals", "mesh_embeds") else value
        return kept


def make_batch(lengths: list[int], meshes: list[int], skeletons: dict[int, list[int]] | None = None) -> Batch:
    """Completions of the given lengths of the given meshes, behind `[bos, class, skeleton...]`."""
    torch.manual_seed(1)
    grammar = Grammar(VOCABULARY)
    width = max(lengths)
    completions = random_completions(grammar, len(lengths), width, seed=3, noise=0.02)
    mask = torch.arange(width) < torch.tensor(lengths)[:, None]
    completions = completions.masked_fill(~mask, VOCABULARY.pad)
    prompts = [
        [VOCABULARY.bos, VOCABULARY.class_id("articulation"), *(skeletons or {}).get(mesh, [])]
        for mesh in meshes
    ]
    begins = torch.tensor([len(prompt) for prompt in prompts])
    ids = torch.full((len(lengths), int(begins.max()) + width), VOCABULARY.pad)
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)] = torch.tensor(prompt)
        ids[row, len(prompt) : len(prompt) + width] = completions[row]
    inputs = {
        "input_ids": ids,
        "completion_ids": completions,
        "mesh_index": torch.tensor(meshes),
        "completion_lengths": torch.tensor(lengths),
        "points": torch.rand(max(meshes) + 1, 40, 3) * 2 - 1,
        "normals": torch.nn.functional.normalize(torch.randn(max(meshes) + 1, 40, 3), dim=-1),
    }
    if skeletons is not None:
        inputs["prompt_lengths"] = begins
    return Batch(inputs, mask)


def gradients(
    model: torch.nn.Module, batch: Batch, groups: list[list[int]] | None = None, **options: Any
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Log-probabilities, entropies and the gradients of a sum that weighs every token differently."""
    model.zero_grad()
    shape = batch.mask.shape
    weigh = torch.linspace(-1, 1, shape.numel()).view(shape)
    log_probs, entropies = torch.zeros(shape), torch.zeros(shape)
    for rows in groups or [list(range(shape[0]))]:
        out = model(**batch.rows(rows), **options)
        (out.log_probs * weigh[rows] + 0.3 * out.entropies * weigh[rows].flip(1)).sum().backward()
        log_probs[rows], entropies[rows] = out.log_probs.detach(), out.entropies.detach()
    return (
        log_probs,
        entropies,
        {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None},
    )


def assert_same(own, theirs) -> None:
    for ours, other in zip(own[:2], theirs[:2], strict=True):
        torch.testing.assert_close(ours, other, atol=1e-5, rtol=1e-5)
    assert own[2].keys() == theirs[2].keys()
    for name, grad in theirs[2].items():
        ours, other = own[2][name].double().flatten(), grad.double().flatten()
        if other.norm() < 1e-7:
            assert ours.norm() < 1e-6, name
            continue
        assert torch.nn.functional.cosine_similarity(ours, other, dim=0) > 0.99999, name
        assert float(ours.norm()) == pytest.approx(float(other.norm()), rel=1e-4), name


SKELETON = [3, 4, 5, 7, 2, 9]
BATCHES = {
    "one group": ([7, 12, 9, 12], [0, 0, 0, 0]),
    "several meshes, mixed": ([13, 1, 5, 21, 1, 8, 30], [2, 0, 0, 2, 1, 0, 2]),
    "rows of length 1 only": ([1, 1, 1], [0, 0, 1]),
    "equal lengths": ([6] * 6, [0, 0, 1, 1, 2, 2]),
    "a row without tokens": ([0, 4, 9], [0, 0, 1]),
    "one row": ([17], [0]),
    "one row of each mesh": ([5, 0, 9, 1, 9], [2, 0, 1, 4, 3]),
}


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": False}, {"use_reentrant": True}])
def test_values_and_gradients(name, checkpointing):
    model, batch = make_model(), make_batch(*BATCHES[name])
    plain = gradients(model, batch)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
    packed = gradients(model, batch, packed=True)
    assert len(plain[2]) == len(list(model.parameters()))  # the mesh encoder's among them
    assert_same(packed, plain)
    assert (packed[0][~batch.mask] == 0).all()


def test_skeletons_of_unequal_length():
    grammar = Grammar(VOCABULARY)
    given = random_completions(grammar, 3, 30, seed=5).tolist()
    skeletons = {
        k: row[: row.index(VOCABULARY.eos) + 1] if VOCABULARY.eos in row else row[: 9 + 2 * k]
        for k, row in enumerate(given)
    }
    assert len({len(skeleton) for skeleton in skeletons.values()}) > 1
    model = make_model()
    for lengths, meshes in (([13, 1, 5, 21, 1, 8, 30], [2, 0, 0, 2, 1, 0, 2]), ([13, 5, 8], [2, 0, 1])):
        batch = make_batch(lengths, meshes, skeletons)
        assert_same(gradients(model, batch, packed=True), gradients(model, batch))


def test_a_group_split_over_micro_batches():
    model, batch = make_model(), make_batch(*BATCHES["several meshes, mixed"])
    parts = [[0, 1, 4], [2, 3], [5, 6]]
    assert_same(gradients(model, batch, parts, packed=True), gradients(model, batch))


def test_rows_with_their_own_conditioning():
    """Without mesh_index each row has its own; with one, equal prompts of one mesh share a prefix."""
    model, batch = make_model(), make_batch([4, 6, 3], [0, 1, 2])
    expected = gradients(model, batch, packed=True)
    batch.inputs["mesh_index"] = None
    model.zero_grad()
    found = model(**batch.inputs, packed=True)
    torch.testing.assert_close(found.log_probs, expected[0], atol=1e-6, rtol=1e-6)


def test_prompts_of_one_mesh_need_not_be_equal():
    batch = make_batch([4, 6, 3, 5], [0, 0, 0, 1])
    batch.inputs["input_ids"][1, 1] = VOCABULARY.class_id("vroid")
    model = make_model()
    assert_same(gradients(model, batch, packed=True), gradients(model, batch))
    rows = pack_rows(
        batch.inputs["input_ids"],
        torch.full((4,), 2),
        batch.inputs["completion_lengths"],
        batch.inputs["mesh_index"],
        MESH_TOKENS,
        6,
    )
    assert rows.meshes == (0, 0, 1)


def test_linear_layers_see_each_token_once():
    model, batch = make_model(), make_batch(*BATCHES["several meshes, mixed"])
    seen = []
    model.transformer.model.layers[0].self_attn.q_proj.register_forward_hook(
        lambda module, args, output: seen.append(tuple(args[0].shape))
    )
    model(**batch.inputs, packed=True)
    assert seen == [(3 * (MESH_TOKENS + 2) + 12 + 0 + 4 + 20 + 0 + 7 + 29, 24)]


@pytest.mark.parametrize("checkpointing", [None, {"use_reentrant": False}, {"use_reentrant": True}])
def test_adapters(checkpointing):
    modules = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]
    model = get_peft_model(make_model(), LoraConfig(r=2, lora_alpha=4, target_modules=modules))
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.3)
    batch = make_batch(*BATCHES["several meshes, mixed"])
    plain = gradients(model, batch)
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=checkpointing)
    assert len(plain[2]) == 3 * 6 * 2
    assert_same(gradients(model, batch, packed=True), plain)
    with model.disable_adapter(), torch.no_grad():
        reference = model(**batch.inputs, packed=True).log_probs
        torch.testing.assert_close(reference, model(**batch.inputs).log_probs, atol=1e-5, rtol=1e-5)
    assert (reference - plain[0]).abs().max() > 0.1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_the_residual_stream_in_its_dtype(dtype):
    model, batch = make_model(), make_batch(*BATCHES["several meshes, mixed"])
    dtypes = set()
    layer = model.transformer.model.layers[1]
    for module in (layer.self_attn.q_proj, layer.self_attn.o_proj, layer.mlp.gate_proj, layer.mlp.down_proj):
        module.register_forward_hook(lambda m, args, out: dtypes.update([args[0].dtype, out.dtype]))
    with torch.autocast("cpu", dtype=dtype):
        found = model(**batch.inputs, packed=True)
    assert dtypes == {dtype}
    assert found.log_probs.dtype == torch.float32
    expected = model(**batch.inputs).log_probs
    used = batch.mask & (expected > -100)
    assert (found.log_probs - expected)[used].abs().mean() < (0.05 if dtype == torch.bfloat16 else 0.01)
    found.log_probs[used].sum().backward()
    assert all(torch.isfinite(weight.grad).all() for weight in model.parameters() if weight.grad is not None)


@pytest.mark.parametrize("missing", ["input_ids", "mesh", "mask"])
def test_arguments_that_a_packed_pass_cannot_take(missing):
    model, batch = make_model(), make_batch([3, 4], [0, 1])
    inputs = dict(batch.inputs)
    if missing == "input_ids":
        inputs["inputs_embeds"] = torch.zeros(*inputs.pop("input_ids").shape, 24)
    elif missing == "mesh":
        inputs["points"] = inputs["normals"] = None
    else:
        inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with pytest.raises(ValueError, match="a packed pass needs"):
        model(**inputs, packed=True)


def _gradients_of_two_processes(rank: int, folder: str) -> None:
    """Each process takes half of the rows; DDP averages the gradients."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    batch = make_batch(*BATCHES["several meshes, mixed"])
    rows = [[0, 1, 2], [3, 4, 5, 6]][rank]
    for packed in (False, True):
        model = torch.nn.parallel.DistributedDataParallel(make_model())
        result = gradients(model, batch, [rows], packed=packed)
        if rank == 0:
            torch.save(result[2], f"{folder}/{packed}.pt")
    del model  # before the group: otherwise its end may wait for a thread that waits for the GIL
    torch.distributed.destroy_process_group()


def test_data_parallel_processes(tmp_path):
    torch.multiprocessing.spawn(_gradients_of_two_processes, (str(tmp_path),), nprocs=2)
    plain, packed = (torch.load(tmp_path / f"{which}.pt") for which in (False, True))
    empty = (torch.zeros(1), torch.zeros(1))
    assert_same((*empty, packed), (*empty, plain))
