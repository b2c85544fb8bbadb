"""Vocabulary of rig tokens: the ids of coordinates, control tokens, parts, classes and SkinTokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

NO_CLASS_NAME = "none"


@dataclass(frozen=True)
class Vocabulary:
    """Token ids of rigs; the defaults are the released checkpoint's 33,036 ids.

    With n = ``bins``: coordinates 0..n-1, branch n, bos n+1, skeleton eos n+2, pad n+3, spring n+4, the
    parts, "no class", the classes, one SkinToken per FSQ code (``skin_first`` + code), and the final eos. All
    ids follow from the five fields, so any codebook works.

    Raises ValueError for sizes below one, and for names that are empty, repeated, contain whitespace or
    angle brackets (they become words such as ``<class:rignet>``), or are the reserved class "none".
    Source: specification, section 9.1.
    """

    bins: int = 256
    """Quantisation bins per coordinate of [-1, 1]; at least 1. Source: specification, section 10."""

    parts: tuple[str, ...] = ("body", "hand")
    """Names of skeleton parts in the order of their ids. Source: specification, section 9.1."""

    classes: tuple[str, ...] = ("rignet", "vroid", "articulation")
    """Names of rig classes in the order of their ids. Source: specification, section 9.1."""

    codebook: int = 32768
    """Number of SkinTokens, the FSQ's codebook size; at least 1. Source: specification, section 8."""

    tokens_per_skin: int = 4
    """SkinTokens per bone; at least 1. Source: specification, section 9.2."""

    def __post_init__(self) -> None:
        for field in ("bins", "codebook", "tokens_per_skin"):
            value = getattr(self, field)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"vocabulary.{field} is {value!r}; use an integer of at least 1")
        for field in ("parts", "classes"):
            names = getattr(self, field)
            if isinstance(names, str):
                raise ValueError(f"vocabulary.{field} is the string {names!r}; use a list of names")
            names = tuple(names)
            object.__setattr__(self, field, names)
            for name in names:
                if not isinstance(name, str) or not name or any(c.isspace() or c in "<>" for c in name):
                    raise ValueError(
                        f"vocabulary.{field} has the name {name!r}; use one without whitespace, '<' or '>'"
                    )
            if len(set(names)) != len(names):
                raise ValueError(
                    f"vocabulary.{field} repeats a name: {', '.join(names)}; list each name once"
                )
        if NO_CLASS_NAME in self.classes:
            raise ValueError(
                "vocabulary.classes has the reserved name 'none'; remove it, because class None represents it"
            )

    @property
    def branch(self) -> int:
        """Precedes a joint that is written with its parent's position."""
        return self.bins

    @property
    def bos(self) -> int:
        """First token of every sequence."""
        return self.bins + 1

    @property
    def skeleton_eos(self) -> int:
        """End of the skeleton; SkinTokens follow."""
        return self.bins + 2

    @property
    def pad(self) -> int:
        """Padding after the final eos."""
        return self.bins + 3

    @property
    def spring(self) -> int:
        """Part without a name."""
        return self.bins + 4

    @property
    def class_none(self) -> int:
        """Class of a rig whose class is unknown."""
        return self.bins + 5 + len(self.parts)

    @property
    def skin_first(self) -> int:
        """SkinToken of code 0; also the number of skeleton ids."""
        return self.class_none + 1 + len(self.classes)

    @property
    def eos(self) -> int:
        """Final eos, the last id."""
        return self.skin_first + self.codebook

    @property
    def size(self) -> int:
        """Number of ids, the rows of the language model's head."""
        return self.eos + 1

    def class_id(self, name: str | None) -> int:
        """Id of a class; ``class_none`` for None and unknown names, as in the release."""
        return self.class_none + 1 + self.classes.index(name) if name in self.classes else self.class_none

    def class_name(self, token: int) -> str | None:
        """Name of a class id, None for ``class_none``. Raises ValueError for any other id."""
        if not self.class_none <= token < self.skin_first:
            raise ValueError(
                f"token {token} is not a class; valid ids: {self.class_none} to {self.skin_first - 1}"
            )
        return None if token == self.class_none else self.classes[token - self.class_none - 1]

    def part_id(self, name: str | None) -> int:
        """Id of a part; ``spring`` for None. Raises ValueError for an unknown name."""
        if name is None:
            return self.spring
        if name not in self.parts:
            raise ValueError(f"unknown part {name!r}; valid parts: {', '.join(self.parts) or '(none)'}")
        return self.spring + 1 + self.parts.index(name)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values."""
        return {
            key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Vocabulary:
        """Inverse of :meth:`to_dict`; missing fields take released values, unknown ones raise ValueError."""
        known = list(cls.__dataclass_fields__)
        unknown = sorted(set(fields) - set(known))
        if unknown:
            raise ValueError(f"unknown vocabulary field {unknown[0]!r}; valid fields: {', '.join(known)}")
        return cls(**fields)
