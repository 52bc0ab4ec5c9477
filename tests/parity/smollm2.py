"""SmolLM2 in transformers, which reads the GGUF file by itself: the judge of the model that everything starts
with.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch

from cutaway.inspect.verify_layers import read_once
from tests import inputs
from tests.parity.tiny import transformers

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a village by the sea,",
    "def fibonacci(n):\n    ",
    "The three laws of thermodynamics state that",
    "Dear Sir or Madam,\n\nI am writing to",
    "To bake a loaf of bread, you first",
    "Q: What is the largest planet?\nA:",
    "In 1969, Neil Armstrong",
    "El perro corre por",
    "1, 2, 4, 8, 16,",
    "The mitochondria is",
    "Roses are red, violets are",
    "import numpy as np\n\nx = np.",
    "According to the theory of evolution,",
    "<|im_start|>user\nWhat is gravity?<|im_end|>\n<|im_start|>assistant\n",
    "The stock market fell today because",
    "Water boils at",
    "SELECT name FROM users WHERE",
    "She opened the door and saw",
    "A haiku about autumn:\n",
)
TEXT = (
    "It is a truth universally acknowledged, that a single man in possession of a good fortune, must be "
    "in want of a wife. However little known the feelings or views of such a man may be on his first "
    "entering a neighbourhood, this truth is so well fixed in the minds of the surrounding families, "
    "that he is considered as the rightful property of some one or other of their daughters. "
)


def gguf_file() -> Path:
    return inputs.path("smollm2")


@cache
def model(path: Path) -> Any:
    """Transformers' own reading of a GGUF file, float32."""
    with read_once():
        return transformers.AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32
        ).eval()


def greedy(judge: Any, ids: list[int], count: int) -> list[int]:
    """The ``count`` tokens that transformers finds likeliest, one after the other, whatever they are."""
    judge.generation_config.eos_token_id = None
    with torch.no_grad():
        whole = judge.generate(torch.tensor([ids]), max_new_tokens=count, do_sample=False, pad_token_id=0)
    return whole[0, len(ids) :].tolist()
