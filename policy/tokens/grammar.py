"""The grammar of rig tokens as a tensor state machine, for sampling (one step) and training (all at once)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from policy.tokens.vocabulary import Vocabulary

Mode = Literal["strict", "released", "fork"]

# Phases: which slice of the language model's head can be legal.
SKELETON, SKIN, FORCED = 0, 1, 2

# Kinds of tokens that the machine tells apart; NOTHING stands for a masked position and changes no state.
_COORDINATE, _BRANCH, _BOS, _SKELETON_EOS, _PAD, _PART, _CLASS, _SKIN_TOKEN, _EOS, _NOTHING = range(10)
_KINDS = 10


@dataclass(frozen=True)
class GrammarState:
    """Where sequences are in the grammar; three int64 tensors of one shape.

    state: row of the transition table; bones: joints counted so far (in the released and fork modes as the
    released logits processor counts them); skin: SkinTokens so far.
    """

    state: Tensor
    bones: Tensor
    skin: Tensor


@dataclass(frozen=True)
class GrammarScan:
    """What the grammar says of completions at once. B rows, L positions.

    before: state before each position, (B, L); phase: (B, L) int64, SKELETON, SKIN or FORCED, of each
    position's token (masked positions are FORCED); row: (B, L) int64 row of ``Grammar.legal_table`` with the
    legal tokens; legal: (B, L) bool, each token is legal there (masked ones are); after: state after the last
    position, (B,).
    """

    before: GrammarState
    phase: Tensor
    row: Tensor
    legal: Tensor
    after: GrammarState


@dataclass(frozen=True)
class PhaseSlices:
    """The ids that can be legal in the phases SKELETON and SKIN; in SKIN all of them are."""

    skeleton: slice
    skin: slice


@dataclass(frozen=True)
class CompletionFacts:
    """Validity of completions, each (B,).

    complete: bool, every token legal and the final eos there; bones: int64, joints; skeleton_length: int64,
    tokens up to and including the skeleton's end, or all if it never comes: earlier positions are skeleton.
    """

    complete: Tensor
    bones: Tensor
    skeleton_length: Tensor


@dataclass(frozen=True)
class _Automaton:
    """Transitions (S, kinds), bones and SkinTokens they count (S, kinds), legal kinds per skeleton state.

    The last two states are always "skin" and "ended"; the first is the start.
    """

    following: list[list[int]]
    bones: list[list[int]]
    skin: list[list[int]]
    legal_kinds: list[tuple[int, ...]]


@dataclass(frozen=True)
class _Tables:
    kind: Tensor
    following: Tensor
    bones: Tensor
    skin: Tensor
    legal: Tensor
    phase: Tensor


class Grammar:
    """The legal next tokens after the prompt ``[bos, class]``, as a finite automaton with two counters.

    mode:

    - ``strict``: what :func:`policy.tokens.skeleton_tokenizer.tokenize_rig` writes and nothing else. At least
      one joint, a branch takes its six coordinates, no parts or classes inside, tokens_per_skin SkinTokens
      per joint, the final eos, then pads. A sequence sampled under it can only be invalid by being cut short.
      An illegal token ends the sequence.
    - ``released``: the machine of the released system (specification, sections 9.3 to 9.5). It accepts
      branches without a joint and empty skeletons, takes control ids for SkinTokens and forces the final eos
      one SkinToken early; after an empty skeleton it never ends.
    - ``fork``: the same skeletons, then only SkinTokens and the final eos after all of them.

    One table drives :meth:`step` (sampling) and :meth:`scan` (training). All methods work on the device of
    their arguments without a copy to the host.
    """

    def __init__(self, vocabulary: Vocabulary, mode: Mode = "strict") -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"unknown grammar {mode!r}; choose {', '.join(get_args(Mode))}")
        self.vocabulary = vocabulary
        self.mode = mode
        automaton = _strict_automaton() if mode == "strict" else _released_automaton()
        self._skin_state = len(automaton.following) - 2
        self._ended_state = len(automaton.following) - 1
        self._complete_row = len(automaton.following)
        self.phase_slices = PhaseSlices(
            skeleton=slice(0, vocabulary.skin_first),
            skin=slice(
                vocabulary.skeleton_eos if mode == "released" else vocabulary.skin_first, vocabulary.eos
            ),
        )
        self._on_device = {torch.device("cpu"): self._build(automaton)}

    def _build(self, automaton: _Automaton) -> _Tables:
        v = self.vocabulary
        kind = torch.full((v.size,), _SKIN_TOKEN)
        kind[: v.bins] = _COORDINATE
        for token, value in ((v.branch, _BRANCH), (v.bos, _BOS), (v.pad, _PAD), (v.eos, _EOS)):
            kind[token] = value
        kind[v.skeleton_eos] = _SKELETON_EOS
        kind[v.spring : v.class_none] = _PART
        kind[v.class_none : v.skin_first] = _CLASS
        legal = torch.zeros(self._complete_row + 1, v.size, dtype=torch.bool)
        for state, kinds in enumerate(automaton.legal_kinds):
            legal[state] = torch.isin(kind, torch.tensor(kinds))
        legal[self._skin_state, self.phase_slices.skin] = True
        legal[self._ended_state, v.pad] = True
        legal[self._complete_row, v.eos] = True
        phase = torch.full((self._complete_row + 1,), SKELETON)
        phase[self._skin_state :] = torch.tensor([SKIN, FORCED, FORCED])
        following, bones, skin = map(torch.tensor, (automaton.following, automaton.bones, automaton.skin))
        return _Tables(kind, following, bones, skin, legal, phase)

    def _tables(self, device: torch.device) -> _Tables:
        if device not in self._on_device:
            tables = self._on_device[torch.device("cpu")]
            self._on_device[device] = _Tables(
                *(getattr(tables, f).to(device) for f in _Tables.__dataclass_fields__)
            )
        return self._on_device[device]

    def legal_table(self, device: torch.device | str = "cpu") -> Tensor:
        """(R, V) bool: the legal tokens of each row that :class:`GrammarScan` names."""
        return self._tables(torch.device(device)).legal

    def start(self, batch: int, device: torch.device | str = "cpu") -> GrammarState:
        """The state after the prompt ``[bos, class]``, tensors of shape (batch,)."""
        zero = torch.zeros(batch, dtype=torch.int64, device=device)
        return GrammarState(state=zero, bones=zero, skin=zero)

    def allowed(self, state: GrammarState) -> Tensor:
        """The tokens that may follow: (B, V) bool, at least one per row."""
        return self._tables(state.state.device).legal[self._row(state)]

    def step(self, state: GrammarState, tokens: Tensor) -> GrammarState:
        """The state after one more token per row; tokens: (B,) int."""
        tables = self._tables(tokens.device)
        kind = tables.kind[tokens]
        return GrammarState(
            state=tables.following[state.state, kind],
            bones=state.bones + tables.bones[state.state, kind],
            skin=state.skin + tables.skin[state.state, kind],
        )

    def finished(self, state: GrammarState) -> Tensor:
        """(B,) bool: after the final eos (strict: or after an illegal token)."""
        return state.state == self._ended_state

    def advance(self, state: GrammarState, tokens: Tensor, mask: Tensor | None = None) -> GrammarState:
        """The state after a given piece of a sequence, such as a partial or whole skeleton.

        tokens: (B, P) int; mask: (B, P), positions that are zero are skipped (rows of unequal length).
        """
        return self.scan(tokens, mask, state).after

    def scan(
        self, completion_ids: Tensor, mask: Tensor | None = None, start: GrammarState | None = None
    ) -> GrammarScan:
        """All positions at once, equal to stepping through them.

        completion_ids: (B, L) int, without the prompt; mask: (B, L), positions that are zero are padding and
        change no state; start: state before position 0, by default :meth:`start`. Every token is a map of
        the automaton's states to themselves; prefixes of maps are composed in log2(L) rounds, the counters
        are cumulative sums.
        """
        if completion_ids.ndim != 2:
            raise ValueError(f"completion ids have shape {tuple(completion_ids.shape)}; give (B, L)")
        if mask is not None and mask.shape != completion_ids.shape:
            raise ValueError(
                f"mask has shape {tuple(mask.shape)}; give that of the ids, {tuple(completion_ids.shape)}"
            )
        batch, length = completion_ids.shape
        tables = self._tables(completion_ids.device)
        start = self.start(batch, completion_ids.device) if start is None else start
        kind = tables.kind[completion_ids]
        if mask is not None:
            kind = torch.where(mask.bool(), kind, _NOTHING)

        maps = tables.following.T[kind]  # (B, L, S): state after the token by state before
        reach = 1
        while reach < length:
            # maps[t] covers `reach` tokens up to t; put the `reach` tokens before them first
            composed = maps[:, reach:].gather(2, maps[:, :-reach])
            maps = torch.cat([maps[:, :reach], composed], dim=1)
            reach *= 2
        following = maps.gather(2, start.state[:, None, None].expand(batch, length, 1)).squeeze(2)
        state = torch.cat([start.state[:, None], following], dim=1)  # (B, L + 1)
        moves = state[:, :-1], kind
        bones = torch.cat([start.bones[:, None], tables.bones[moves]], dim=1).cumsum(1)
        skin = torch.cat([start.skin[:, None], tables.skin[moves]], dim=1).cumsum(1)

        before = GrammarState(state[:, :-1], bones[:, :-1], skin[:, :-1])
        row = self._row(before)
        phase, legal = tables.phase[row], tables.legal[row, completion_ids]
        if mask is not None:
            phase, legal = torch.where(mask.bool(), phase, FORCED), legal | ~mask.bool()
        return GrammarScan(before, phase, row, legal, GrammarState(state[:, -1], bones[:, -1], skin[:, -1]))

    def validity(self, completion_ids: Tensor, mask: Tensor | None = None) -> CompletionFacts:
        """Which completions are whole rigs under this grammar; arguments as in :meth:`scan`.

        In the released and fork modes a complete sequence can still hold a skeleton that
        :func:`policy.tokens.skeleton_tokenizer.detokenize` refuses.
        """
        scan = self.scan(completion_ids, mask)
        used = torch.ones_like(completion_ids, dtype=torch.bool) if mask is None else mask.bool()
        ended = ((completion_ids == self.vocabulary.eos) & used).any(dim=1)
        in_skeleton = (scan.before.state < self._skin_state) & used
        return CompletionFacts(
            complete=ended & scan.legal.all(dim=1),
            bones=scan.after.bones,
            skeleton_length=in_skeleton.sum(dim=1),
        )

    def _row(self, state: GrammarState) -> Tensor:
        """Row of the legal table: the state, or the extra row that forces the final eos."""
        needed = state.bones * self.vocabulary.tokens_per_skin
        complete = state.skin + 1 == needed if self.mode == "released" else state.skin >= needed
        return torch.where((state.state == self._skin_state) & complete, self._complete_row, state.state)


def _strict_automaton() -> _Automaton:
    x, y, z, joint, px, py, pz, skin, ended = range(9)
    steps = {
        x: {_COORDINATE: y},
        y: {_COORDINATE: z},
        z: {_COORDINATE: joint},
        joint: {_COORDINATE: y, _BRANCH: px, _SKELETON_EOS: skin},
        px: {_COORDINATE: py},
        py: {_COORDINATE: pz},
        pz: {_COORDINATE: x},
        skin: {_SKIN_TOKEN: skin},
        ended: {},
    }
    following = [[steps[s].get(kind, ended) for kind in range(_KINDS)] for s in steps]
    counted = [[int(s == z and kind == _COORDINATE) for kind in range(_KINDS)] for s in steps]
    return _finish(following, counted, [tuple(steps[s]) for s in range(skin)])


def _released_automaton() -> _Automaton:
    """Specification, sections 9.3 and 9.4; states with `_of_branch` carry the flag is_branch.

    Illegal tokens move on as in the release; only the skeleton's end and the final eos count everywhere.
    """
    first, x, y, z, joint, x_of_branch, y_of_branch, z_of_branch, skin, ended = range(10)
    anything = {
        first: first,
        x: y,
        y: z,
        z: joint,
        joint: x,
        x_of_branch: y_of_branch,
        y_of_branch: z_of_branch,
        z_of_branch: joint,
        skin: skin,
        ended: ended,
    }
    following = [[anything[s]] * _KINDS for s in anything]
    following[first][_COORDINATE] = following[joint][_COORDINATE] = y
    following[joint][_BRANCH] = x_of_branch
    for state in range(skin):
        following[state][_SKELETON_EOS] = skin
        following[state][_EOS] = ended
    following[skin][_EOS] = ended
    counted = [[int(s == z)] * _KINDS for s in anything]
    after_joint = (_COORDINATE, _BRANCH, _SKELETON_EOS, _PART)
    before_joint = (_COORDINATE, _SKELETON_EOS, _PART)
    legal = {first: before_joint, joint: after_joint}
    return _finish(following, counted, [legal.get(s, (_COORDINATE,)) for s in range(skin)])


def _finish(
    following: list[list[int]], bones: list[list[int]], legal_kinds: list[tuple[int, ...]]
) -> _Automaton:
    skin_state = len(following) - 2
    skin = [[int(s == to == skin_state) for to in transitions] for s, transitions in enumerate(following)]
    for state in range(len(following)):
        following[state][_NOTHING], bones[state][_NOTHING], skin[state][_NOTHING] = state, 0, 0
    return _Automaton(following, bones, skin, legal_kinds)
