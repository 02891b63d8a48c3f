import math

import pytest
import torch
from torch.nn import functional

from worker.compression.distillation import losses
from worker.compression.distillation.objectives import choice, choices

STUDENT = torch.tensor([[1.0, 2.0, 0.5], [0.0, -1.0, 3.0]])
TEACHER = torch.tensor([[2.0, 1.0, 0.0], [0.5, 0.5, 2.0]])


def test_the_cosine_loss_is_the_distance_of_directions() -> None:
    found = losses.cosine(
        torch.tensor([[3.0, 0.0], [1.0, 1.0], [1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 2.0], [-5, 0]])
    )
    assert found.tolist() == pytest.approx([0.0, 1 - 1 / math.sqrt(2), 2.0], abs=1e-6)


def test_the_squared_error_is_a_mean_over_dimensions() -> None:
    assert losses.mse(torch.tensor([[1.0, 2.0]]), torch.tensor([[4.0, 2.0]])).tolist() == [4.5]
    assert losses.mse(STUDENT, TEACHER).mean() == pytest.approx(functional.mse_loss(STUDENT, TEACHER).item())


def test_the_divergence_of_two_choices_by_hand() -> None:
    # p = (3/4, 1/4), q = (1/2, 1/2): 3/4 log(3/2) + 1/4 log(1/2)
    by_hand = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    teacher = torch.tensor([[math.log(3.0), 0.0]])
    assert losses.kl(torch.zeros(1, 2), teacher, 1.0).item() == pytest.approx(by_hand, rel=1e-5)
    # At T = 2 the odds of 3 to 1 become the root of it, and the divergence counts four times.
    odds = math.sqrt(3)
    p = odds / (1 + odds)
    softened = p * math.log(2 * p) + (1 - p) * math.log(2 * (1 - p))
    assert losses.kl(torch.zeros(1, 2), teacher, 2.0).item() == pytest.approx(4 * softened, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_divergence_is_torchs_times_the_square_of_the_temperature(temperature: float) -> None:
    expected = temperature**2 * functional.kl_div(
        (STUDENT / temperature).log_softmax(-1), (TEACHER / temperature).softmax(-1), reduction="none"
    ).sum(-1)
    torch.testing.assert_close(losses.kl(STUDENT, TEACHER, temperature), expected)
    # Scores tell as much as the logits that they were made of.
    torch.testing.assert_close(losses.kl_of_scores(STUDENT, TEACHER.softmax(-1), temperature), expected)


def test_gradients_keep_their_size_at_a_high_temperature() -> None:
    """Which is what the square is for (Hinton et al.): towards (student - teacher) / k, whatever the temperature."""
    sizes = []
    for temperature in (20.0, 200.0):
        student = STUDENT.clone().requires_grad_()
        losses.kl(student, TEACHER, temperature).sum().backward()
        assert student.grad is not None
        sizes.append(student.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_the_divergence_of_decisions_is_a_sum_over_labels(temperature: float) -> None:
    soft, found = (TEACHER / temperature).sigmoid(), (STUDENT / temperature).sigmoid()
    expected = soft * (soft / found).log() + (1 - soft) * ((1 - soft) / (1 - found)).log()
    torch.testing.assert_close(
        losses.kl_of_sigmoids(STUDENT, TEACHER.sigmoid(), temperature), temperature**2 * expected.sum(-1)
    )


def test_scores_that_were_rounded_give_finite_losses() -> None:
    scores = torch.tensor([[1.0, 0.0]])
    logits = torch.tensor([[3.0, -2.0]], requires_grad=True)
    for loss in (losses.kl_of_scores(logits, scores, 2.0), losses.kl_of_sigmoids(logits, scores, 2.0)):
        assert loss.isfinite().all()
        loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_what_is_the_same_costs_nothing() -> None:
    for loss in (losses.cosine, losses.mse):
        assert loss(STUDENT, STUDENT).abs().max() < 1e-6
    assert losses.kl(STUDENT, STUDENT + 7, 2.0).abs().max() < 1e-6
    assert losses.kl_of_sigmoids(STUDENT, STUDENT.sigmoid(), 2.0).abs().max() < 1e-5


def test_labels_and_teacher_share_the_loss() -> None:
    soft, hard = torch.tensor([2.0]), torch.tensor([6.0])
    assert losses.mixed(soft, hard, 0.25).tolist() == [3.0]
    assert losses.mixed(soft, None, 0.25).tolist() == [2.0]


def test_labels_are_judged_by_cross_entropy() -> None:
    right = torch.tensor([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    expected = functional.cross_entropy(STUDENT, torch.tensor([1, 0]), reduction="none")
    torch.testing.assert_close(choice(STUDENT, right), expected)
    yes_or_no = -(right * STUDENT.sigmoid().log() + (1 - right) * (1 - STUDENT.sigmoid()).log()).sum(-1)
    torch.testing.assert_close(choices(STUDENT, right), yes_or_no)
