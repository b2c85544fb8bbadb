import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from torch.nn import functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from policy.tokenrig.configuration import TokenRigConfig
from policy.tokenrig.modeling import TokenRigForCausalLM

TOLERANCE = {"rtol": 0, "atol": 2e-5}


@pytest.fixture(scope="module")
def condition(model, golden):
    return model.encode_mesh(golden["points"][None], golden["normals"][None])


@pytest.fixture(scope="module")
def ids(golden):
    return golden["lm_prefix"][None]


def test_released_conditioning_and_logits(model, golden, condition, ids):
    torch.testing.assert_close(condition, golden["mesh_cond"], **TOLERANCE)
    tokens = condition.shape[1]
    logits = model.next_token_logits(condition, ids)
    assert logits.shape == (1, 30, 2828)
    torch.testing.assert_close(logits[0], golden["lm_logits"][tokens:], **TOLERANCE)
    # The first 16 recorded positions are those of the conditioning; the last of them predicts bos.
    hidden = model.transformer.model(
        inputs_embeds=torch.cat([condition, model.get_input_embeddings()(ids)], dim=1)
    ).last_hidden_state
    torch.testing.assert_close(model.transformer.lm_head(hidden)[0], golden["lm_logits"], **TOLERANCE)


def test_logits_are_causal(model, condition, ids):
    changed = ids.clone()
    changed[0, 20] = 5
    before, after = (model.next_token_logits(condition, x)[0] for x in (ids, changed))
    torch.testing.assert_close(before[:20], after[:20], **TOLERANCE)
    assert not torch.allclose(before[20:], after[20:], atol=1e-3)


def test_cached_steps_equal_the_full_pass(model, condition, ids):
    full = model.next_token_logits(condition, ids)
    step = model(input_ids=ids[:, :2], mesh_embeds=condition, use_cache=True)
    logits = [step.logits]
    for i in range(2, ids.shape[1]):
        # With and without a mask of the ids so far, which never covers the conditioning.
        mask = torch.ones(1, i + 1, dtype=torch.int64) if i % 2 else None
        step = model(
            input_ids=ids[:, i : i + 1],
            attention_mask=mask,
            past_key_values=step.past_key_values,
            use_cache=True,
        )
        logits.append(step.logits)
    assert step.past_key_values.get_seq_length() == 16 + 30
    torch.testing.assert_close(torch.cat(logits, dim=1), full, **TOLERANCE)


def test_right_padding_needs_no_mask(model, condition, ids):
    padded = torch.cat([ids, torch.full((1, 7), 259)], dim=1)
    mask = (torch.arange(37) < 30).long()[None]
    full = model.next_token_logits(condition, ids)
    for attention_mask in (None, mask):
        found = model(input_ids=padded, mesh_embeds=condition, attention_mask=attention_mask).logits
        torch.testing.assert_close(found[:, :30], full, **TOLERANCE)


def test_meshes_by_index(model, golden, ids):
    points, normals = golden["meshbatch_points"], golden["meshbatch_normals"]
    embeds = model.encode_mesh(points, normals)
    rows = ids.repeat(3, 1)
    index = torch.tensor([1, 0, 1])
    expected = model(input_ids=rows, mesh_embeds=embeds[index]).logits
    by_embeds = model(input_ids=rows, mesh_embeds=embeds, mesh_index=index).logits
    by_points = model(input_ids=rows, points=points, normals=normals, mesh_index=index).logits
    torch.testing.assert_close(by_embeds, expected, rtol=0, atol=0)
    torch.testing.assert_close(by_points, expected, **TOLERANCE)
    assert not torch.allclose(expected[0], expected[1], atol=1e-3)
    tail = model(input_ids=rows, mesh_embeds=embeds[index], logits_to_keep=2).logits
    torch.testing.assert_close(tail, expected[:, -2:], **TOLERANCE)


def test_loss_is_next_token_cross_entropy(model, condition, ids):
    labels = ids.clone()
    labels[0, :2] = -100
    loss = model(input_ids=ids, mesh_embeds=condition, labels=labels).loss
    log_probs = model.next_token_logits(condition, ids)[0].log_softmax(-1)
    expected = -sum(log_probs[i - 1, ids[0, i]] for i in range(2, 30)) / 28
    torch.testing.assert_close(loss, expected)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_completion_log_probs_are_those_of_the_masked_logits(model, condition, temperature):
    # Strict grammar. Prompt [bos, class]; one joint, the skeleton's end, four SkinTokens, the final eos.
    prompt = [257, 264]
    completion = [10, 20, 30, 258, 267, 300, 999, 2826, 2827]
    ids = torch.tensor([prompt + completion])
    out = model(
        input_ids=ids,
        mesh_embeds=condition,
        completion_ids=ids[:, 2:],
        temperature=temperature,
        logits_to_keep=1,
    )
    logits = model.next_token_logits(condition, ids)[0, 1:-1] / temperature
    coordinates = list(range(256))
    skin = list(range(267, 2827))
    # After a triple: next joint, branch, or the end; the class is given, parts are decided by the grammar.
    expected = []
    for position, token in enumerate(completion):
        if position in (1, 2):
            legal = coordinates
        elif 4 <= position < 8:
            legal = skin
        elif position == 8:
            legal = [2827]
        else:
            continue
        expected.append((position, F.log_softmax(logits[position][legal], -1)[legal.index(token)]))
    found = out.log_probs[0]
    assert out.logits is None
    assert found.shape == (9,)
    for position, value in expected:
        torch.testing.assert_close(found[position], value, rtol=0, atol=1e-4)
    assert found[8] == 0  # forced
    entropy = torch.distributions.Categorical(logits=logits[1][:256]).entropy()
    torch.testing.assert_close(out.entropies[0, 1], entropy, rtol=0, atol=1e-4)


def test_completion_needs_a_prompt(model, condition, ids):
    with pytest.raises(ValueError, match="a completion of 30 ids needs a prompt before it; got 30 positions"):
        model(input_ids=ids, completion_ids=ids)


def test_generate_uses_the_conditioning_once(model, golden):
    points, normals = golden["meshbatch_points"], golden["meshbatch_normals"]
    embeds = model.encode_mesh(points, normals)
    prompt = torch.tensor([[257, 266], [257, 264]])
    found = model.generate(prompt, mesh_embeds=embeds, max_new_tokens=6, do_sample=False)
    expected = prompt
    for _ in range(6):
        logits = model.next_token_logits(embeds, expected)[:, -1]
        expected = torch.cat([expected, logits.argmax(-1, keepdim=True)], dim=1)
    assert found.tolist() == expected.tolist()


def test_save_and_load(fresh_model, golden, tmp_path):
    fresh_model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert "transformer.lm_head.weight" not in set(file.keys())
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is TokenRigConfig
    assert config.to_dict()["vocabulary"] == fresh_model.config.vocabulary
    for loader in (TokenRigForCausalLM, AutoModelForCausalLM):
        again = loader.from_pretrained(tmp_path)
        assert type(again) is TokenRigForCausalLM
        assert again.transformer.lm_head.weight is again.transformer.model.embed_tokens.weight
        before, after = fresh_model.state_dict(), again.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    points, normals = golden["points"][None], golden["normals"][None]
    low = TokenRigForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    with torch.no_grad():
        logits = low.next_token_logits(low.encode_mesh(points, normals), torch.tensor([[257, 264, 7]]))
        full = fresh_model.next_token_logits(
            fresh_model.encode_mesh(points, normals), torch.tensor([[257, 264, 7]])
        )
    assert low.dtype == torch.bfloat16
    assert logits.dtype == torch.float32  # whatever the precision, as the log-probabilities
    torch.testing.assert_close(logits, full, rtol=0, atol=0.05)


def test_released_size_and_names():
    with torch.device("meta"):
        model = TokenRigForCausalLM(TokenRigConfig())
    # Unique parameters of the manifest: mesh encoder, projection, language model.
    counts = {name: sum(p.numel() for p in child.parameters()) for name, child in model.named_children()}
    assert counts == {"mesh_encoder": 28_387_840, "output_proj": 460_544, "transformer": 415_010_176}


def test_initial_weights(fresh_model, tiny_config):
    assert fresh_model.output_proj[0].weight.abs().max() <= 48**-0.5  # PyTorch's default
    assert fresh_model.get_input_embeddings().weight.std().item() == pytest.approx(0.02, rel=0.02)
    torch.manual_seed(0)
    scaled = TokenRigForCausalLM(TokenRigConfig(**{**tiny_config.to_dict(), "init_scale": 1.0}))
    assert scaled.mesh_encoder.encoder.input_proj.weight.std().item() == pytest.approx(48**-0.5, rel=0.05)
    assert scaled.output_proj[0].weight.std().item() == pytest.approx(64**-0.5, rel=0.05)
    assert scaled.output_proj[0].bias.abs().max() == 0


def test_training_reaches_every_parameter_with_and_without_checkpointing(fresh_model, golden, ids):
    model = fresh_model.train()
    points, normals = golden["points"][None], golden["normals"][None]
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        model.zero_grad()
        model(input_ids=ids, points=points, normals=normals, labels=ids).loss.backward()
        without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().any()]
        assert without == []
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6)


def test_lora(fresh_model, golden, ids):
    with torch.no_grad():
        condition = fresh_model.encode_mesh(golden["points"][None], golden["normals"][None])
        before = fresh_model.next_token_logits(condition, ids)
    wrapped = get_peft_model(
        fresh_model, LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj", "v_proj"], r=2)
    )
    out = wrapped(input_ids=ids, mesh_embeds=condition, labels=ids)
    torch.testing.assert_close(out.logits, before, **TOLERANCE)  # B starts at zero
    out.loss.backward()
    trained = {n.split(".")[-3] for n, p in wrapped.named_parameters() if p.grad is not None}
    assert trained == {"lora_A", "lora_B"}


def test_errors(model, condition, ids):
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model(mesh_embeds=condition)
    with pytest.raises(ValueError, match="1 mesh embeddings for 2 rows: pass mesh_index"):
        model(input_ids=ids.repeat(2, 1), mesh_embeds=condition)
    with pytest.raises(ValueError, match="points need normals"):
        model(input_ids=ids, points=torch.zeros(1, 8, 3))
    with pytest.raises(ValueError, match="logits_to_keep"):
        model(input_ids=ids, mesh_embeds=condition, labels=ids, logits_to_keep=1)


# ------------------------------------------------------------------ given skeletons and padding

# The skeletons of two rows, one joint and three (the last a branch), and the SkinTokens of both.
GIVEN = [[10, 20, 30, 258], [10, 20, 30, 40, 50, 60, 256, 10, 20, 30, 70, 80, 90, 258]]
SKIN = [[300, 400, 500, 600, 2827], [*range(300, 312), 2827]]


def given_rows() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids padded on the right, completions, and the prompts' lengths."""
    width = max(map(len, SKIN))
    completions = torch.tensor([row + [259] * (width - len(row)) for row in SKIN])
    rows = [[257, 264, *skeleton, *skin] for skeleton, skin in zip(GIVEN, SKIN, strict=True)]
    total = 2 + max(map(len, GIVEN)) + width
    ids = torch.tensor([row + [259] * (total - len(row)) for row in rows])
    return ids, completions, torch.tensor([2 + len(skeleton) for skeleton in GIVEN])


def test_a_given_skeleton_is_the_beginning_of_a_completion(model, condition):
    """Its SkinTokens have the log-probabilities that they have after the same skeleton as a completion."""
    ids, completions, lengths = given_rows()
    both = condition.expand(2, -1, -1)
    found = model(input_ids=ids, completion_ids=completions, prompt_lengths=lengths, mesh_embeds=both)
    for row, (skeleton, skin) in enumerate(zip(GIVEN, SKIN, strict=True)):
        whole = torch.tensor([[257, 264, *skeleton, *skin]])
        direct = model(input_ids=whole, completion_ids=whole[:, 2:], mesh_embeds=condition)
        for name in ("log_probs", "entropies"):
            own, expected = getattr(found, name)[row], getattr(direct, name)[0, len(skeleton) :]
            torch.testing.assert_close(own[: len(skin)], expected, **TOLERANCE)
            assert (own[len(skin) :] == 0).all()  # padding
        # Without lengths, the completion is the end of the row.
        alone = model(input_ids=whole, completion_ids=torch.tensor([skin]), mesh_embeds=condition)
        torch.testing.assert_close(alone.log_probs[0], found.log_probs[row, : len(skin)], **TOLERANCE)
        assert (found.log_probs[row, : len(skin) - 1] < -0.01).all()


def test_padding_anywhere_changes_nothing(model, condition):
    """The layout of the rollout, padded on the left, against the layout of training; and between the two."""
    ids, completions, lengths = given_rows()
    both = condition.expand(2, -1, -1)
    right = model(input_ids=ids, completion_ids=completions, prompt_lengths=lengths, mesh_embeds=both)
    gap = len(GIVEN[1]) - len(GIVEN[0])
    opening, skin = [257, 264], completions[0].tolist()
    other = [*opening, *GIVEN[1], *completions[1].tolist()]
    for padding in (259, 5):  # whatever the padding
        for first, row in (
            (0, [*[padding] * gap, *opening, *GIVEN[0], *skin]),
            (2, [*opening, *[padding] * gap, *GIVEN[0], *skin]),
        ):
            rows = torch.tensor([row, other])
            mask = torch.ones_like(rows)
            mask[0, first : first + gap] = 0
            left = model(input_ids=rows, attention_mask=mask, completion_ids=completions, mesh_embeds=both)
            torch.testing.assert_close(left.log_probs, right.log_probs, **TOLERANCE)
            torch.testing.assert_close(left.entropies, right.entropies, **TOLERANCE)
    masked = model(
        input_ids=ids,
        attention_mask=(ids != 259).long(),
        completion_ids=completions,
        prompt_lengths=lengths,
        mesh_embeds=both,
    )
    torch.testing.assert_close(masked.log_probs, right.log_probs, **TOLERANCE)


def test_cached_steps_after_padded_prompts_equal_rows_on_their_own(model, condition):
    gap = len(GIVEN[1]) - len(GIVEN[0])
    prompts = torch.tensor([[*[259] * gap, 257, 264, *GIVEN[0]], [257, 264, *GIVEN[1]]])
    mask = (prompts != 259).long()
    step = model(
        input_ids=prompts, attention_mask=mask, mesh_embeds=condition.expand(2, -1, -1), use_cache=True
    )
    logits = [step.logits[:, -1]]
    for token in (300, 301, 302):
        mask = F.pad(mask, (0, 1), value=1)
        step = model(
            input_ids=torch.full((2, 1), token),
            attention_mask=mask,
            past_key_values=step.past_key_values,
            use_cache=True,
        )
        logits.append(step.logits[:, -1])
    for row, skeleton in enumerate(GIVEN):
        alone = model.next_token_logits(condition, torch.tensor([[257, 264, *skeleton, 300, 301, 302]]))
        torch.testing.assert_close(torch.stack(logits, dim=1)[row], alone[0, -4:], **TOLERANCE)


def test_no_gradient_comes_from_a_given_skeleton(fresh_model, golden):
    """Hidden states that predict the skeleton's tokens get none; those that predict its skin do."""
    model = fresh_model
    with torch.no_grad():
        condition = model.encode_mesh(golden["points"][None], golden["normals"][None])
    ids, completions, lengths = given_rows()
    kept = []
    hook = model.transformer.model.norm.register_forward_hook(
        lambda module, inputs, output: (output.retain_grad(), kept.append(output))[0]
    )
    try:
        out = model(
            input_ids=ids,
            completion_ids=completions,
            prompt_lengths=lengths,
            mesh_embeds=condition.expand(2, -1, -1),
        )
        (out.log_probs.sum() + out.entropies.sum()).backward()
    finally:
        hook.remove()
    gradient = kept[0].grad.abs().sum(dim=2)
    tokens = condition.shape[1]
    for row, (prompt, skin) in enumerate(zip(lengths.tolist(), SKIN, strict=True)):
        first = tokens + prompt - 1  # predicts the first SkinToken
        assert (gradient[row, :first] == 0).all()
        # The final eos is forced, so nothing is learnt from it; padding comes after it.
        assert (gradient[row, first : first + len(skin) - 1] > 0).all()
        assert (gradient[row, first + len(skin) - 1 :] == 0).all()
    with pytest.raises(ValueError, match="prompt_lengths need input_ids"):
        model(
            inputs_embeds=model.get_input_embeddings()(ids),
            completion_ids=completions,
            prompt_lengths=lengths,
        )
