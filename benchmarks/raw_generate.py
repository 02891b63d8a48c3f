"""`transformers.generate` over the same weights, no queue: prints tokens a second, one at a time and as one batch."""

import json
import sys
import time
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from benchmarks.weights import SMOLLM2
from contracts.names import Quantization
from worker.loading import load_module, load_tokenizer


def main() -> None:
    kind, new_tokens, questions = Quantization(sys.argv[1]), int(sys.argv[2]), json.loads(sys.argv[3])
    module: Any = load_module(SMOLLM2.parent, kind, "cpu", AutoModelForCausalLM)
    tokenizer: Any = load_tokenizer(SMOLLM2.parent)
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    chats = [[{"role": "user", "content": question}] for question in questions]

    def generate(some: list[Any]) -> float:
        inputs = tokenizer.apply_chat_template(
            some, add_generation_prompt=True, padding=True, return_tensors="pt", return_dict=True
        )
        with torch.inference_mode():
            out = module.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
        new = out[:, inputs["input_ids"].shape[1] :]
        # What follows the end of a text is padding, which nobody asked for.
        ends = (new == tokenizer.eos_token_id).int()
        return float(torch.where(ends.any(1), ends.argmax(1) + 1, new.shape[1]).sum())

    generate(chats[:1])
    begin = time.perf_counter()
    single = sum(generate([chat]) for chat in chats)
    middle = time.perf_counter()
    batch = generate(chats)
    end = time.perf_counter()
    print(json.dumps({"one at a time": single / (middle - begin), "generate, one batch": batch / (end - middle)}))


if __name__ == "__main__":
    main()
