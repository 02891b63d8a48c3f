"""What a student is to reach, by task: its outputs for some rows, against those of its teacher."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional
from transformers import PreTrainedModel

from worker.compression.distillation import losses
from worker.compression.distillation.data import Places
from worker.engines.embed import pooled
from worker.engines.padding import Ids, padded
from worker.engines.sentence import SentenceModel

Compare: TypeAlias = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Outputs of the student and what the teacher gave, `[n, k]` each, into a loss for each row."""


class Objective(ABC):
    """A loss that is a mean over units: rows, or tokens that follow others."""

    logits: int = 0
    """Numbers that a student gives for each token of a pass, where these outweigh all else in memory."""

    @abstractmethod
    def loss(self, module: torch.nn.Module, ids: Sequence[Ids], places: Places, device: torch.device) -> torch.Tensor:
        """The sum over the units of these rows, with a gradient.

        Args:
            module: The student, maybe wrapped for several processes.
            ids: Of each row.
            places: Of each row, where its teacher's output stands.
            device: Where the module is.
        """

    def units(self, ids: Ids) -> int:
        """In a row; 1 where each row is one."""
        return 1


class Embeddings(Objective):
    """Vectors, pooled and normalized as the student's files say, against those of the teacher."""

    def __init__(self, sentence: SentenceModel, pad_id: int, teacher: NDArray[np.float32], loss: str) -> None:
        self._sentence = sentence
        self._pad_id = pad_id
        self._teacher = teacher
        self._loss = losses.cosine if loss == "cosine" else losses.mse

    def loss(self, module: torch.nn.Module, ids: Sequence[Ids], places: Places, device: torch.device) -> torch.Tensor:
        """Of the rows' vectors."""
        tokens, mask = padded(ids, self._pad_id, device)
        hidden = module(input_ids=tokens, attention_mask=mask, return_dict=True).last_hidden_state
        vectors = pooled(hidden.float(), mask, self._sentence.poolings)
        if self._sentence.normalize:
            vectors = functional.normalize(vectors, dim=-1)
        return self._loss(vectors, _rows(self._teacher, places, device)).sum()


class Labels(Objective):
    """What a head gives, against the teacher's scores, and against labels where rows have them.

    Args:
        pad_id: The student's.
        teacher: Scores `[rows, k]`.
        soft: Compares with them.
        labels: What is right, `[rows, k]`: 1 for the labels of a row and 0 for others, or the numbers of a regression.
        hard: Compares with that.
        hard_weight: The share of the latter.
    """

    def __init__(
        self,
        pad_id: int,
        teacher: NDArray[np.float32],
        soft: Compare,
        labels: NDArray[np.float32] | None,
        hard: Compare,
        hard_weight: float,
    ) -> None:
        self._pad_id = pad_id
        self._teacher = teacher
        self._soft = soft
        self._labels = labels
        self._hard = hard
        self._hard_weight = hard_weight

    def loss(self, module: torch.nn.Module, ids: Sequence[Ids], places: Places, device: torch.device) -> torch.Tensor:
        """Of the rows' outputs."""
        tokens, mask = padded(ids, self._pad_id, device)
        logits = module(input_ids=tokens, attention_mask=mask, return_dict=True).logits.float()
        soft = self._soft(logits, _rows(self._teacher, places, device))
        hard = None if self._labels is None else self._hard(logits, _rows(self._labels, places, device))
        return losses.mixed(soft, hard, self._hard_weight).sum()


class NextTokens(Objective):
    """What a language model expects after each token, against what its teacher expects there, and what stands there.

    Args:
        teacher: Computes beside the student: logits of all tokens of all rows would take terabytes on disk.
        temperature: Of the divergence.
        hard_weight: The share of the cross entropy with the token that follows.
    """

    def __init__(self, teacher: PreTrainedModel, temperature: float, hard_weight: float) -> None:
        self.logits = teacher.config.get_text_config().vocab_size
        self._teacher = teacher
        self._temperature = temperature
        self._hard_weight = hard_weight

    def loss(self, module: torch.nn.Module, ids: Sequence[Ids], places: Places, device: torch.device) -> torch.Tensor:
        """Of the tokens that follow others; teacher and student read the same, varied or not."""
        tokens, mask = padded(ids, 0, device)
        # Padding stands at the end, where no token looks: no model is given a mask.
        real = torch.ones_like(tokens, dtype=torch.bool) if mask is None else mask.bool()
        followed = real[:, 1:]
        found = self._logits(module, tokens)[followed].float()
        hard = functional.cross_entropy(found, tokens[:, 1:][followed], reduction="none")
        if self._hard_weight == 1:
            return hard.sum()
        with torch.no_grad():  # inference mode would keep its tensors out of the student's gradient
            wanted = self._logits(self._teacher, tokens)[followed].float()
        return losses.mixed(losses.kl(found, wanted, self._temperature), hard, self._hard_weight).sum()

    def units(self, ids: Ids) -> int:
        """The tokens of a row that follow others."""
        return len(ids) - 1

    @staticmethod
    def _logits(module: Any, tokens: torch.Tensor) -> torch.Tensor:
        """Of what follows each token but the last, `[n, tokens - 1, vocabulary]`."""
        found: torch.Tensor = module(input_ids=tokens, use_cache=False, return_dict=True).logits[:, :-1]
        return found


def choice(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy with the one label that is right."""
    return functional.cross_entropy(logits, labels.argmax(-1), reduction="none")


def choices(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy of the decisions about each label, summed."""
    return functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").sum(-1)


def _rows(array: NDArray[np.float32], places: Places, device: torch.device) -> torch.Tensor:
    """Rows of an array, which may be on disk, as a tensor where the model is."""
    return torch.from_numpy(np.ascontiguousarray(array[places], np.float32)).to(device)
