"""Rows of a table into vectors, by a network of one's own."""

import torch
from safetensors.torch import load_file

from worker.engines.base import Engine, Prepared
from worker.engines.vectors import in_precision
from worker.loading import weight_bytes


def network():
    return torch.nn.Sequential(torch.nn.Linear(4, 16), torch.nn.Tanh(), torch.nn.Linear(16, 8))


class TabularEngine(Engine):
    def __init__(self, module, device):
        self.module, self.device = module.to(device).eval(), device

    @classmethod
    def load(cls, model, folder, device):
        module = network()
        module.load_state_dict(load_file(folder / "model.safetensors"))
        return cls(module, device)

    @property
    def memory_bytes(self):
        return weight_bytes(self.module)

    def prepare(self, payloads, params):
        return Prepared.each(payloads, row)

    def run(self, rows, params):
        with torch.inference_mode():
            vectors = self.module(torch.stack(rows).to(self.device))
        return in_precision(vectors.cpu().numpy(), params["precision"])

    def synthetic(self, length, count):
        return [torch.zeros(4)] * count


def row(payload):
    tensor = torch.tensor(payload, dtype=torch.float32)
    if tensor.shape != (4,):
        raise ValueError(f"expected 4 numbers, got the shape {list(tensor.shape)}")
    return tensor
