"""Random completions, legal or noisy, for tests of the grammar and of the log-probabilities."""

import torch
from torch import Tensor

from policy.tokens.grammar import Grammar


def random_completions(grammar: Grammar, rows: int, length: int, seed: int, noise: float = 0.0) -> Tensor:
    """Random completions: legal tokens, with probability `noise` any token."""
    random = torch.Generator().manual_seed(seed)
    state, columns = grammar.start(rows), []
    for _ in range(length):
        legal = torch.multinomial(grammar.allowed(state).float(), 1, generator=random)[:, 0]
        any_token = torch.randint(grammar.vocabulary.size, (rows,), generator=random)
        wild = torch.rand(rows, generator=random) < noise
        columns.append(torch.where(wild, any_token, legal))
        state = grammar.step(state, columns[-1])
    return torch.stack(columns, dim=1) if columns else torch.zeros(rows, 0, dtype=torch.int64)
