"""What moves a student's weights, and how far at each update."""

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from contracts.errors import CompressionFailed, describe
from contracts.recipes import Distill

MOMENTUM = 0.9
"""Of sgd."""
SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}
"""By our names; all three begin with a warm-up."""


def make_optimizer(step: Distill, module: torch.nn.Module, device: torch.device) -> Optimizer:
    """The optimizer of the step over all weights of the module that learn.

    Biases and the scales of norms do not decay: they are vectors, and everything else has two dimensions or more.

    Raises:
        CompressionFailed: bitsandbytes cannot compute its optimizer on the device.
    """
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    groups = [
        {"params": [weight for weight in weights if weight.ndim > 1], "weight_decay": step.weight_decay},
        {"params": [weight for weight in weights if weight.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    match step.optimizer:
        case "adamw":
            return torch.optim.AdamW(groups, lr=step.learning_rate)
        case "sgd":
            return torch.optim.SGD(groups, lr=step.learning_rate, momentum=MOMENTUM)
        case "rmsprop":
            return torch.optim.RMSprop(groups, lr=step.learning_rate)
        case "adamw-8bit":
            _try_8bit(device)
            return _adamw_8bit(groups, step.learning_rate)


def make_schedule(step: Distill, optimizer: Optimizer, updates: int) -> LRScheduler:
    """The schedule of the step, to be moved on once an update: up to the learning rate, then as its name says."""
    name = SCHEDULES[step.schedule]
    found: LRScheduler = get_scheduler(name, optimizer, round(step.warmup * updates), updates)
    return found


def _adamw_8bit(groups: list[dict[str, object]], learning_rate: float) -> Optimizer:
    """AdamW with both moments in 8 bits a weight: Dettmers et al., "8-bit Optimizers via Block-wise Quantization"."""
    from bitsandbytes.optim import AdamW8bit  # a second to import, and only this needs it

    found: Optimizer = AdamW8bit(groups, lr=learning_rate)
    return found


def _try_8bit(device: torch.device) -> None:
    """Make one update: there is no kernel for some devices, which is said only then."""
    weight = torch.nn.Parameter(torch.ones(64, 64, device=device))
    weight.grad = torch.ones_like(weight)
    try:
        _adamw_8bit([{"params": [weight]}], 0.1).step()
    except Exception as error:
        raise CompressionFailed(
            f"optimizer adamw-8bit: bitsandbytes does not compute it on {device.type} ({describe(error)}); take adamw"
        ) from error
