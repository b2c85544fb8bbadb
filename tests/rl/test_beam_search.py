"""Beam search: against every completion there is, and against greedy decoding."""

import itertools

import pytest
import torch

from policy.tokenrig.configuration import TokenRigConfig
from policy.tokenrig.mesh_encoder import MeshEncoderConfig
from policy.tokenrig.modeling import TokenRigForCausalLM
from policy.tokens.grammar import Grammar
from policy.tokens.vocabulary import Vocabulary
from rl.beam_search import beam_search
from rl.engine.plain import PlainSampler
from rl.rollout import Rollouts, sample_rigs
from tests.rl import tiny

# Two coordinates, one SkinToken per joint out of two. Within 10 tokens: one joint, 3 coordinates, the
# skeleton's end, a SkinToken and <eos>: 2^4 = 16 completions of 6. Two joints in a chain: 6 coordinates, the
# end, two SkinTokens, <eos>: 2^8 = 256 of 10. A branch would take 14.
WORDS = Vocabulary(bins=2, codebook=2, tokens_per_skin=1)
LIMIT = 10
MESHES = 5
EVERY_BEGINNING = 400


def small_model(vocabulary: Vocabulary, sharpness: float) -> TokenRigForCausalLM:
    torch.manual_seed(1)
    model = TokenRigForCausalLM(
        TokenRigConfig(
            vocabulary=vocabulary.to_dict(),
            mesh_encoder=MeshEncoderConfig(width=16, heads=2, num_encoder_layers=1, token_num=4).to_dict(),
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            intermediate_size=64,
            max_position_embeddings=64,
        )
    ).eval()
    with torch.no_grad():
        model.transformer.model.norm.weight.mul_(sharpness)
    return model


@pytest.fixture(scope="module")
def model() -> TokenRigForCausalLM:
    return small_model(WORDS, 8.0)


@pytest.fixture(scope="module")
def embeds() -> torch.Tensor:
    return torch.randn(MESHES, 4, 32, generator=torch.Generator().manual_seed(2))


def search(model, embeds, beams: int, limit: int = LIMIT, mode="strict", **options) -> Rollouts:
    class_ids = torch.full((len(embeds),), WORDS.class_none)
    return beam_search(
        model, embeds, class_ids, Grammar(WORDS, mode), max_new_tokens=limit, beams=beams, **options
    )


def completions() -> list[list[int]]:
    bits, skins = range(WORDS.bins), range(WORDS.skin_first, WORDS.skin_first + WORDS.codebook)
    whole = []
    for joints in (1, 2):
        for coordinates in itertools.product(bits, repeat=3 * joints):
            for codes in itertools.product(skins, repeat=joints):
                whole.append([*coordinates, WORDS.skeleton_eos, *codes, WORDS.eos])
    return whole


@torch.no_grad()
def totals(model, embed: torch.Tensor, sequences: list[list[int]]) -> torch.Tensor:
    """Sum of log-probabilities of whole completions, by the pass that training uses."""
    width = max(map(len, sequences))
    padded = torch.tensor([ids + [WORDS.pad] * (width - len(ids)) for ids in sequences])
    prompt = torch.tensor([[WORDS.bos, WORDS.class_none]]).expand(len(padded), 2)
    output = model(
        input_ids=torch.cat([prompt, padded], dim=1),
        completion_ids=padded,
        mesh_embeds=embed[None].expand(len(padded), -1, -1),
    )
    return output.log_probs.double().sum(dim=1)


@pytest.mark.parametrize("length_penalty", [0.0, 0.7, 1.0, 2.0])
def test_a_beam_of_every_beginning_finds_the_best_of_all_completions(model, embeds, length_penalty):
    found = search(model, embeds, EVERY_BEGINNING, length_penalty=length_penalty)
    assert found.complete.all()
    sequences = completions()
    assert len(sequences) == 16 + 256
    lengths = torch.tensor([len(ids) for ids in sequences]).double()
    for mesh, ids in enumerate(found.rows()[0]):
        own = totals(model, embeds[mesh], sequences)
        best = int((own / lengths**length_penalty).argmax())
        assert ids == sequences[best]
        assert found.log_probs[mesh].sum().item() == pytest.approx(own[best].item(), abs=1e-4)


def test_length_matters(model, embeds):
    """The likeliest whole rigs have one joint; a strong penalty of short ones gives two."""
    short = search(model, embeds, EVERY_BEGINNING, length_penalty=0.0).lengths
    long = search(model, embeds, EVERY_BEGINNING, length_penalty=5.0).lengths
    assert (short <= long).all()
    assert (short == 6).any()
    assert (long == 10).any()


@pytest.mark.parametrize("beams", [2, 3, 8])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_narrow_beam_finds_what_a_plain_search_does(model, embeds, beams, length_penalty):
    """The reference: a list of hypotheses per mesh, each run through the model from its beginning."""
    found = search(model, embeds, beams, length_penalty=length_penalty).rows()[0]
    grammar = Grammar(WORDS)
    for mesh in range(MESHES):
        kept, ended = [((), 0.0)], []
        while any(ids[-1:] != (WORDS.eos,) for ids, _ in kept):
            grown = []
            for ids, total in kept:
                if ids[-1:] == (WORDS.eos,) or len(ids) == LIMIT:
                    grown.append((ids, total))
                    continue
                state = grammar.advance(grammar.start(1), torch.tensor([ids], dtype=torch.int64).view(1, -1))
                prompt = torch.tensor([[WORDS.bos, WORDS.class_none, *ids]])
                with torch.no_grad():
                    logits = model(input_ids=prompt, mesh_embeds=embeds[mesh][None]).logits[0, -1].double()
                allowed = grammar.allowed(state)[0]
                logp = logits.masked_fill(~allowed, -torch.inf).log_softmax(0)
                grown += [((*ids, t), total + logp[t].item()) for t in allowed.nonzero().flatten().tolist()]
            grown.sort(key=lambda each: -each[1] / len(each[0]) ** length_penalty)
            kept = grown[:beams]
            ended += [each for each in kept if each[0][-1] == WORDS.eos]
            if all(len(ids) == LIMIT or ids[-1] == WORDS.eos for ids, _ in kept):
                break
        best = max(ended or kept, key=lambda each: each[1] / len(each[0]) ** length_penalty)
        assert tuple(found[mesh]) == best[0]


@pytest.mark.parametrize("mode", ["strict", "fork", "released"])
def test_a_beam_of_one_is_greedy(policy, mode):
    with torch.no_grad():
        policy.model.transformer.model.norm.weight.mul_(4)
    words = tiny.VOCABULARY
    embeds = torch.randn(6, tiny.MESH_TOKENS, 32, generator=torch.Generator().manual_seed(5))
    classes = torch.full((6,), words.class_none)
    grammar = Grammar(words, mode)
    found = beam_search(policy.model, embeds, classes, grammar, max_new_tokens=60, beams=1)
    greedy = sample_rigs(
        PlainSampler(policy.model, grammar),
        embeds,
        torch.arange(6),
        classes,
        max_new_tokens=60,
        seeds=[0] * 6,
        temperature=0.0,
    )
    assert found.rows()[0] == greedy.rows()[0]
    assert torch.equal(found.complete, greedy.complete)
    for own, other in zip(found.rows()[1], greedy.rows()[1], strict=True):
        assert own == pytest.approx(other, abs=1e-5)


def test_a_mesh_does_not_depend_on_the_others(model, embeds):
    whole = search(model, embeds, 3)
    for mesh in range(MESHES):
        alone = search(model, embeds[mesh : mesh + 1], 3)
        assert alone.rows()[0][0] == whole.rows()[0][mesh]


# Given skeletons of one and two joints, the latter one with a branch, so that prompts differ in length.
SKELETONS = [(0, 1, 0), (0, 0, 1, 1, 1, 0), (1, 1, 1), (0, 1, 1, 0, 0, 0), (1, 0, 0)]
GIVEN = [(*coordinates, WORDS.skeleton_eos) for coordinates in SKELETONS]


@pytest.mark.parametrize("beams", [1, 2, EVERY_BEGINNING])
def test_of_given_skeletons_the_best_skin_is_found(model, embeds, beams):
    """Against every skin there is: two SkinTokens per joint, and one or two joints."""
    found = search(model, embeds, beams, skeletons=GIVEN)
    assert found.complete.all()
    skins = range(WORDS.skin_first, WORDS.skin_first + WORDS.codebook)
    for mesh, skeleton in enumerate(GIVEN):
        alone = search(model, embeds[mesh : mesh + 1], beams, skeletons=[skeleton])
        assert alone.rows()[0][0] == found.rows()[0][mesh]
        joints = len(SKELETONS[mesh]) // 3
        every = [[*skeleton, *codes, WORDS.eos] for codes in itertools.product(skins, repeat=joints)]
        # The skeleton's own log-probability is the same for all of them.
        own = totals(model, embeds[mesh], every)
        if beams > 1:  # all there are fit into the beam
            assert found.rows()[0][mesh] == every[int(own.argmax())][len(skeleton) :]
    if beams == 1:
        greedy = sample_rigs(
            PlainSampler(model, Grammar(WORDS)),
            embeds,
            torch.arange(MESHES),
            torch.full((MESHES,), WORDS.class_none),
            max_new_tokens=LIMIT,
            seeds=[0] * MESHES,
            temperature=0.0,
            skeletons=GIVEN,
        )
        assert greedy.rows()[0] == found.rows()[0]


def test_what_does_not_end_is_cut_off(model, embeds):
    found = search(model, embeds, 3, limit=5)
    assert not found.complete.any()
    assert found.lengths.tolist() == [5] * MESHES
    assert (found.completion_ids != WORDS.eos).all()


def test_more_beams_than_choices(model, embeds):
    """One mesh has 272 completions within the limit: a beam of a thousand holds nothing twice."""
    found = search(model, embeds[:1], 1000)
    assert found.rows()[0] == search(model, embeds[:1], EVERY_BEGINNING).rows()[0]


def test_the_model_is_left_as_it_was():
    model = small_model(WORDS, 1.0)
    for mode in (True, False):
        model.train(mode)
        search(model, torch.zeros(1, 4, 32), 2, limit=4)
        assert model.training is mode


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 0}, "beams 0 must be at least 1"),
        ({"beams": 2, "length_penalty": -1.0}, "length_penalty -1.0 at least 0"),
        # 64 positions - 4 of the mesh - <bos> - class = 58
        ({"beams": 2, "limit": 59}, r"must be between 1 and 58 for this model"),
    ],
)
def test_what_does_not_fit_is_refused(model, embeds, options, message):
    with pytest.raises(ValueError, match=message):
        search(model, embeds, **options)


def test_every_mesh_needs_a_class(model, embeds):
    with pytest.raises(ValueError, match=r"class_ids have shape \(2,\) for 5 meshes"):
        beam_search(
            model, embeds, torch.full((2,), WORDS.class_none), Grammar(WORDS), max_new_tokens=4, beams=2
        )
