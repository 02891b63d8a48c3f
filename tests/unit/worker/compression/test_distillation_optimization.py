import math

import pytest
import torch

from tests.distilling import distillation
from worker.compression.distillation.optimization import make_optimizer, make_schedule

CPU = torch.device("cpu")


def module() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(80, 64), torch.nn.LayerNorm(64), torch.nn.Linear(64, 3))


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "rmsprop", "adamw-8bit"])
def test_an_update_makes_the_loss_smaller(optimizer: str) -> None:
    model = module()
    step = distillation(optimizer=optimizer, learning_rate=0.01 if optimizer == "sgd" else 1e-3)
    updates = make_optimizer(step, model, CPU)
    inputs = torch.randn(16, 80)
    found = []
    for _ in range(3):
        loss = model(inputs).square().mean()
        updates.zero_grad()
        loss.backward()
        updates.step()
        found.append(loss.item())
    assert found == sorted(found, reverse=True)
    assert found[2] < found[0]


def test_8_bit_moments_take_a_byte_each() -> None:
    model = module()
    updates = make_optimizer(distillation(optimizer="adamw-8bit"), model, CPU)
    model(torch.randn(4, 80)).sum().backward()
    updates.step()
    state = updates.state[model[0].weight]
    assert state["state1"].dtype == state["state2"].dtype == torch.uint8


def test_vectors_do_not_decay() -> None:
    model = module()
    groups = make_optimizer(distillation(weight_decay=0.1), model, CPU).param_groups
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert [len(group["params"]) for group in groups] == [2, 4]
    assert {weight.ndim for weight in groups[1]["params"]} == {1}


def test_what_does_not_learn_is_left_out() -> None:
    model = module()
    model[0].requires_grad_(False)
    assert sum(len(group["params"]) for group in make_optimizer(distillation(), model, CPU).param_groups) == 4


@pytest.mark.parametrize(
    ("schedule", "half_way", "end"),
    [("constant", 1.0, 1.0), ("linear", 0.5, 1 / 80), ("cosine", 0.5, (1 + math.cos(math.pi * 79 / 80)) / 2)],
)
def test_the_learning_rate_rises_and_then_goes_as_its_schedule_says(schedule: str, half_way: float, end: float) -> None:
    step = distillation(schedule=schedule, warmup=0.2, learning_rate=0.5)
    optimizer = make_optimizer(step, module(), CPU)
    rates = make_schedule(step, optimizer, 100)
    found = []
    for _ in range(100):
        found.append(rates.get_last_lr()[0])
        optimizer.step()
        rates.step()
    assert found[0] == 0
    assert found[10] == pytest.approx(0.25)
    assert max(found) == found[20] == pytest.approx(0.5)
    assert found[60] == pytest.approx(0.5 * half_way)
    assert found[99] == pytest.approx(0.5 * end)
