"""What a student's outputs cost, given its teacher's: one number a row, in float32.

A softened distribution is that of logits divided by a temperature. Gradients of its divergence shrink by the square of
it, so the divergence is multiplied by that: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network"
(2015), section 2.
"""

import torch
from torch.nn import functional

TINY = torch.finfo(torch.float32).tiny
"""Scores below it are taken as it: their logarithm is a number."""
EPSILON = torch.finfo(torch.float32).eps
"""How near a score of a sigmoid comes to 0 and 1: in float32 many are rounded to 1, whose logit is infinite."""


def cosine(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """One less the cosine of the angle between two vectors, for each pair of `[n, d]`; from 0 to 2."""
    return 1 - functional.cosine_similarity(student, teacher, dim=-1)


def mse(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The mean over dimensions of the squared difference, for each pair of `[n, d]`."""
    return (student - teacher).square().mean(-1)


def kl(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """T² · KL(teacher ‖ student) of softened distributions over `[n, k]` logits, in nats.

    KL(p ‖ q) = Σ p · (log p - log q). Logits that differ by a constant give the same distribution, so the logarithms of
    a softmax stand for the logits that it was made of.
    """
    wanted = (teacher / temperature).log_softmax(-1)
    found = (student / temperature).log_softmax(-1)
    return temperature**2 * (wanted.exp() * (wanted - found)).sum(-1)


def kl_of_scores(student: torch.Tensor, scores: torch.Tensor, temperature: float) -> torch.Tensor:
    """The same where the teacher gave what a softmax made of its logits."""
    return kl(student, scores.clamp_min(TINY).log(), temperature)


def kl_of_sigmoids(student: torch.Tensor, scores: torch.Tensor, temperature: float) -> torch.Tensor:
    """T² · KL of softened yes-or-no decisions, summed over the k labels of `[n, k]`, in nats.

    Labels that are decided one by one have a divergence that is the sum of theirs.
    """
    logits = scores.clamp(EPSILON, 1 - EPSILON).logit() / temperature
    student = student / temperature
    yes = logits.sigmoid() * (functional.logsigmoid(logits) - functional.logsigmoid(student))
    no = (-logits).sigmoid() * (functional.logsigmoid(-logits) - functional.logsigmoid(-student))
    return temperature**2 * (yes + no).sum(-1)


def mixed(soft: torch.Tensor, hard: torch.Tensor | None, hard_weight: float) -> torch.Tensor:
    """The teacher's part and that of labels, `(1 - w) · soft + w · hard`; all the teacher's where there are none."""
    return soft if hard is None else (1 - hard_weight) * soft + hard_weight * hard
