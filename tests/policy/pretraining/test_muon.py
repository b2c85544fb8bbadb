"""Muon and AdamW as one optimizer: the same steps as the two apart, to the last bit."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
from torch import nn

from policy.pretraining.muon import MuonAdamW

Step = Callable[[], None]


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 4, bias=False), nn.Tanh(), nn.Linear(4, 1))


def pair(model: nn.Module) -> tuple[torch.optim.Muon, torch.optim.AdamW]:
    matrices = [model[0].weight, model[2].weight]
    rest = [parameter for parameter in model.parameters() if all(parameter is not one for one in matrices)]
    muon = torch.optim.Muon(matrices, lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    groups = [{"params": rest[:1], "weight_decay": 0.2}, {"params": rest[1:]}]
    return muon, torch.optim.AdamW(groups, lr=0.02, betas=(0.9, 0.98), weight_decay=0.0)


def backward(model: nn.Module, step: int) -> torch.Tensor:
    x = torch.randn(8, 5, generator=torch.Generator().manual_seed(step))
    loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
    model.zero_grad()
    loss.backward()
    return loss.detach()


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def test_it_steps_as_the_two_do():
    apart, together = net(), net()
    optimizers, one = pair(apart), MuonAdamW(*pair(together))
    for step in range(8):
        rate = 0.02 / (step + 1)
        for optimizer in (*optimizers, one):
            for group in optimizer.param_groups:
                group["lr"] = rate
        backward(apart, step)
        backward(together, step)
        for optimizer in optimizers:
            optimizer.step()
        one.step()
        assert equal(apart, together)
    assert not equal(apart, net())
    assert len(one.param_groups) == 3
    assert len(one.state) == len(list(together.parameters()))


@pytest.mark.parametrize("through_a_file", [False, True])
def test_its_state_dict_goes_on_exactly(through_a_file):
    model = net()
    optimizer = MuonAdamW(*pair(model))
    for step in range(3):
        backward(model, step)
        optimizer.step()
    other = copy.deepcopy(model)
    again = MuonAdamW(*pair(other))
    state = optimizer.state_dict()
    if through_a_file:
        file = io.BytesIO()
        torch.save(state, file)
        file.seek(0)
        state = torch.load(file, weights_only=True)
    again.load_state_dict(copy.deepcopy(state))
    for step in range(3, 6):
        for one, its in ((model, optimizer), (other, again)):
            backward(one, step)
            its.step()
    assert equal(model, other)
    # Without the state it would not be.
    forgetful = net()
    forgetful.load_state_dict(model.state_dict())
    backward(model, 6)
    backward(forgetful, 6)
    optimizer.step()
    MuonAdamW(*pair(forgetful)).step()
    assert not equal(model, forgetful)


def test_rates_set_after_loading_count():
    model = net()
    optimizer = MuonAdamW(*pair(model))
    backward(model, 0)
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())
    before = copy.deepcopy(model)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    backward(model, 1)
    optimizer.step()
    assert equal(model, before)


def test_a_closure_is_called_once_with_gradients():
    model = net()
    calls = []

    def closure() -> torch.Tensor:
        calls.append(torch.is_grad_enabled())
        return backward(model, 0)

    loss = MuonAdamW(*pair(model)).step(closure)
    assert calls == [True]
    assert loss == backward(net(), 0)


def test_a_state_of_other_groups_is_refused():
    model = net()
    with pytest.raises(ValueError, match="parameter group"):
        MuonAdamW(*pair(model)).load_state_dict(torch.optim.AdamW(model.parameters()).state_dict())
