"""The grammar of rig tokens as a tensor state machine: one step (sampling) or a whole sequence (training)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from policy.tokens.vocabulary import Vocabulary

Mode = Literal["strict", "released", "fork"]

# Phases: they determine the slice of the language model's head that can be legal.
SKELETON, SKIN, FORCED = 0, 1, 2

# Tokens before a completion or a given skeleton: bos and the class.
PROMPT_LENGTH = 2

# Kinds of tokens that the automaton distinguishes; a masked position changes no state.
_COORDINATE, _BRANCH, _BOS, _SKELETON_EOS, _PAD, _PART, _CLASS, _SKIN_TOKEN, _EOS, _MASKED = range(10)
_KINDS = 10


@dataclass(frozen=True)
class GrammarState:
    """State of the automaton for each sequence: three int64 tensors of one shape.

    state: row of the transition table; bones: joints so far (in the released and fork modes as the released
    logits processor counts them); skin: SkinTokens so far.
    """

    state: Tensor
    bones: Tensor
    skin: Tensor


@dataclass(frozen=True)
class GrammarScan:
    """States, phases and legality of completions with B rows and L positions.

    before: state before each position, (B, L); phase: (B, L) int64, SKELETON, SKIN or FORCED for the token at
    each position (FORCED at masked ones); row: (B, L) int64, row of ``Grammar.legal_table`` with the tokens
    that are legal there; legal: (B, L) bool, whether the token is legal (True at masked positions); after:
    state after the last position, (B,).
    """

    before: GrammarState
    phase: Tensor
    row: Tensor
    legal: Tensor
    after: GrammarState


@dataclass(frozen=True)
class PhaseSlices:
    """Ids that can be legal in the phases SKELETON and SKIN; in SKIN all of them are legal."""

    skeleton: slice
    skin: slice


@dataclass(frozen=True)
class CompletionValidity:
    """Validity of completions, each (B,).

    complete: bool, every token is legal and the final eos is present; bones: int64, number of joints;
    skeleton_length: int64, tokens up to and including the skeleton eos, or all without one.
    """

    complete: Tensor
    bones: Tensor
    skeleton_length: Tensor


@dataclass(frozen=True)
class _Automaton:
    """Transitions (S, kinds), joints and SkinTokens they count (S, kinds), legal kinds by skeleton state.

    The first state is the start; the last two are always "skin" and "ended".
    """

    next_state: list[list[int]]
    bones: list[list[int]]
    skin: list[list[int]]
    legal_kinds: list[tuple[int, ...]]


@dataclass(frozen=True)
class _Tables:
    kind: Tensor
    next_state: Tensor
    bones: Tensor
    skin: Tensor
    legal: Tensor
    phase: Tensor
    first_legal: Tensor


class Grammar:
    """Legal next tokens after the prompt ``[bos, class]``: a finite automaton with two counters.

    mode:

    - ``strict``: exactly the sequences of :func:`policy.tokens.skeleton_tokenizer.tokenize_rig`: at least one
      joint, six coordinates after a branch, no parts or classes inside, tokens_per_skin SkinTokens per joint,
      the final eos, then pads. A sequence sampled under it is invalid only if truncated. An illegal token
      ends the sequence.
    - ``released``: the state machine of the released system. It accepts branches without a joint, empty
      skeletons and control ids as SkinTokens, and forces the final eos one SkinToken early; after an empty
      skeleton it never ends.
    - ``fork``: the released skeletons, then only SkinTokens, and the final eos after all of them.

    One table drives :meth:`step` (sampling) and :meth:`scan` (training). All methods run on the device of
    their arguments without a copy to the host. Raises ValueError for another mode. Source: this project
    (strict); specification, sections 9.3 to 9.5 (released, fork).
    """

    def __init__(self, vocabulary: Vocabulary, mode: Mode = "strict") -> None:
        if mode not in get_args(Mode):
            raise ValueError(f"unknown grammar {mode!r}; choose from {', '.join(get_args(Mode))}")
        self.vocabulary = vocabulary
        self.mode = mode
        automaton = _strict_automaton() if mode == "strict" else _released_automaton()
        self._skin_state = len(automaton.next_state) - 2
        self._ended_state = len(automaton.next_state) - 1
        self._force_eos_row = len(automaton.next_state)
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
        legal = torch.zeros(self._force_eos_row + 1, v.size, dtype=torch.bool)
        for state, kinds in enumerate(automaton.legal_kinds):
            legal[state] = torch.isin(kind, torch.tensor(kinds))
        legal[self._skin_state, self.phase_slices.skin] = True
        legal[self._ended_state, v.pad] = True
        legal[self._force_eos_row, v.eos] = True
        phase = torch.full((self._force_eos_row + 1,), SKELETON)
        phase[self._skin_state :] = torch.tensor([SKIN, FORCED, FORCED])
        next_state, bones, skin = map(torch.tensor, (automaton.next_state, automaton.bones, automaton.skin))
        return _Tables(kind, next_state, bones, skin, legal, phase, legal.int().argmax(dim=1))

    def _tables(self, device: torch.device) -> _Tables:
        if device not in self._on_device:
            tables = self._on_device[torch.device("cpu")]
            self._on_device[device] = _Tables(
                *(getattr(tables, f).to(device) for f in _Tables.__dataclass_fields__)
            )
        return self._on_device[device]

    def legal_table(self, device: torch.device | str = "cpu") -> Tensor:
        """(R, V) bool: legal tokens by row; :class:`GrammarScan` holds the row of each position."""
        return self._tables(torch.device(device)).legal

    def legal_row(self, state: GrammarState) -> Tensor:
        """Row of :meth:`legal_table`: the state's, or the extra one that forces the final eos."""
        needed = state.bones * self.vocabulary.tokens_per_skin
        complete = state.skin + 1 == needed if self.mode == "released" else state.skin >= needed
        return torch.where((state.state == self._skin_state) & complete, self._force_eos_row, state.state)

    def start(self, batch: int, device: torch.device | str = "cpu") -> GrammarState:
        """The state after the prompt ``[bos, class]``, tensors of shape (batch,)."""
        zero = torch.zeros(batch, dtype=torch.int64, device=device)
        return GrammarState(state=zero, bones=zero, skin=zero)

    def allowed(self, state: GrammarState) -> Tensor:
        """Legal next tokens: (B, V) bool, at least one per row."""
        return self._tables(state.state.device).legal[self.legal_row(state)]

    def phases(self, rows: Tensor) -> Tensor:
        """SKELETON, SKIN or FORCED for rows of the legal table, as from :meth:`legal_row`; same shape."""
        return self._tables(rows.device).phase[rows]

    def first_legal(self, rows: Tensor) -> Tensor:
        """The lowest legal token of rows of the legal table, as from :meth:`legal_row`; same shape.

        For FORCED rows it is the only one.
        """
        return self._tables(rows.device).first_legal[rows]

    def step(self, state: GrammarState, tokens: Tensor) -> GrammarState:
        """The state after one more token per row; tokens: (B,) int."""
        tables = self._tables(tokens.device)
        kind = tables.kind[tokens]
        return GrammarState(
            state=tables.next_state[state.state, kind],
            bones=state.bones + tables.bones[state.state, kind],
            skin=state.skin + tables.skin[state.state, kind],
        )

    def finished(self, state: GrammarState) -> Tensor:
        """(B,) bool: whether the final eos (in strict mode, also an illegal token) has been read."""
        return state.state == self._ended_state

    def advance(self, state: GrammarState, tokens: Tensor, mask: Tensor | None = None) -> GrammarState:
        """The state after several more tokens per row, such as a given skeleton.

        tokens: (B, P) int; mask: (B, P), zero at positions to skip (rows of unequal length).
        """
        return self.scan(tokens, mask, state).after

    def after_prompt(self, prompt_ids: Tensor, mask: Tensor | None = None) -> GrammarState:
        """The state after prompts ``[bos, class]``, followed by a given skeleton or not: tensors (B,).

        prompt_ids: (B, P) int; mask: (B, P), zero at padding, which may stand anywhere.
        """
        used = torch.ones_like(prompt_ids) if mask is None else mask.long()
        given = (used > 0) & (used.cumsum(dim=1) > PROMPT_LENGTH)
        return self.advance(self.start(len(prompt_ids), prompt_ids.device), prompt_ids, given)

    def scan(
        self, completion_ids: Tensor, mask: Tensor | None = None, start: GrammarState | None = None
    ) -> GrammarScan:
        """Scan whole completions in parallel; the result equals stepping through them.

        completion_ids: (B, L) int, without the prompt; mask: (B, L), zero at padding, which changes no state;
        start: state before position 0, by default :meth:`start`. Each token is a map from state to state;
        a parallel prefix scan composes the maps in log2(L) rounds, and counters are cumulative sums. Raises
        ValueError for wrong shapes.
        """
        if completion_ids.ndim != 2:
            raise ValueError(f"completion ids have shape {tuple(completion_ids.shape)}; pass (B, L)")
        if mask is not None and mask.shape != completion_ids.shape:
            raise ValueError(
                f"mask has shape {tuple(mask.shape)}; it must match the ids, {tuple(completion_ids.shape)}"
            )
        batch, length = completion_ids.shape
        tables = self._tables(completion_ids.device)
        start = self.start(batch, completion_ids.device) if start is None else start
        kind = tables.kind[completion_ids]
        if mask is not None:
            kind = torch.where(mask.bool(), kind, _MASKED)

        maps = tables.next_state.T[kind]  # (B, L, S): state after the token by state before
        span = 1
        while span < length:
            # maps[t] covers the `span` tokens up to t; compose it with the map of the `span` tokens before.
            composed = maps[:, span:].gather(2, maps[:, :-span])
            maps = torch.cat([maps[:, :span], composed], dim=1)
            span *= 2
        after = maps.gather(2, start.state[:, None, None].expand(batch, length, 1)).squeeze(2)
        state = torch.cat([start.state[:, None], after], dim=1)  # (B, L + 1)
        transitions = state[:, :-1], kind
        bones = torch.cat([start.bones[:, None], tables.bones[transitions]], dim=1).cumsum(1)
        skin = torch.cat([start.skin[:, None], tables.skin[transitions]], dim=1).cumsum(1)

        before = GrammarState(state[:, :-1], bones[:, :-1], skin[:, :-1])
        row = self.legal_row(before)
        phase, legal = tables.phase[row], tables.legal[row, completion_ids]
        if mask is not None:
            phase, legal = torch.where(mask.bool(), phase, FORCED), legal | ~mask.bool()
        return GrammarScan(before, phase, row, legal, GrammarState(state[:, -1], bones[:, -1], skin[:, -1]))

    def validity(self, completion_ids: Tensor, mask: Tensor | None = None) -> CompletionValidity:
        """Whether completions are complete rigs under this grammar; arguments as in :meth:`scan`.

        In the released and fork modes, the skeleton of a complete sequence can still be one that
        :func:`policy.tokens.skeleton_tokenizer.detokenize` refuses.
        """
        scan = self.scan(completion_ids, mask)
        used = torch.ones_like(completion_ids, dtype=torch.bool) if mask is None else mask.bool()
        ended = ((completion_ids == self.vocabulary.eos) & used).any(dim=1)
        in_skeleton = (scan.before.state < self._skin_state) & used
        return CompletionValidity(
            complete=ended & scan.legal.all(dim=1),
            bones=scan.after.bones,
            skeleton_length=in_skeleton.sum(dim=1),
        )


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
    next_state = [[steps[s].get(kind, ended) for kind in range(_KINDS)] for s in steps]
    counted = [[int(s == z and kind == _COORDINATE) for kind in range(_KINDS)] for s in steps]
    return _build_automaton(next_state, counted, [tuple(steps[s]) for s in range(skin)])


def _released_automaton() -> _Automaton:
    """Specification, sections 9.3 and 9.4; states named `_of_branch` carry the flag is_branch.

    An illegal token follows the state's default transition, as in the release; skeleton eos and final eos are
    recognised in every state.
    """
    first, x, y, z, joint, x_of_branch, y_of_branch, z_of_branch, skin, ended = range(10)
    default = {
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
    next_state = [[default[s]] * _KINDS for s in default]
    next_state[first][_COORDINATE] = next_state[joint][_COORDINATE] = y
    next_state[joint][_BRANCH] = x_of_branch
    for state in range(skin):
        next_state[state][_SKELETON_EOS] = skin
        next_state[state][_EOS] = ended
    next_state[skin][_EOS] = ended
    counted = [[int(s == z)] * _KINDS for s in default]
    after_joint = (_COORDINATE, _BRANCH, _SKELETON_EOS, _PART)
    before_joint = (_COORDINATE, _SKELETON_EOS, _PART)
    legal = {first: before_joint, joint: after_joint}
    return _build_automaton(next_state, counted, [legal.get(s, (_COORDINATE,)) for s in range(skin)])


def _build_automaton(
    next_state: list[list[int]], bones: list[list[int]], legal_kinds: list[tuple[int, ...]]
) -> _Automaton:
    skin_state = len(next_state) - 2
    skin = [[int(s == to == skin_state) for to in transitions] for s, transitions in enumerate(next_state)]
    for state in range(len(next_state)):
        next_state[state][_MASKED], bones[state][_MASKED], skin[state][_MASKED] = state, 0, 0
    return _Automaton(next_state, bones, skin, legal_kinds)
