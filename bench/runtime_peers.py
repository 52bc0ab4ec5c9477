"""One peer's decoding and reading of SmolLM2, in its own process: what bench/runtime.py prints beside ours.

    python bench/runtime_peers.py openvino_genai MODEL.gguf THREADS
    python bench/runtime_peers.py ctranslate2|transformers FOLDER THREADS

openvino-genai reads the GGUF file itself; ctranslate2 converts the folder (Hugging Face's layout) to 8 bits,
its fastest; transformers runs it in bfloat16 and float32. Prints a JSON object: for each way that the peer
computes, tokens/s of decoding 128 tokens and of reading 512."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

PROMPT, DECODE, TIMES = 512, 128, 3
FIRST, VOCAB = 17, 49_000  # SmolLM2's ids behind its control tokens
Rates = dict[str, dict[str, float]]


def openvino_genai(path: Path, threads: int) -> Rates:
    import openvino
    import openvino_genai as genai

    pipe = genai.LLMPipeline(path, "CPU", INFERENCE_NUM_THREADS=threads)
    prompts = _prompts(VOCAB)

    def run(count: int) -> float:
        ids = openvino.Tensor(next(prompts)[None])
        inputs = genai.TokenizedInputs(ids, openvino.Tensor(np.ones((1, PROMPT), np.int64)))
        return _seconds(lambda: pipe.generate(inputs, max_new_tokens=count, ignore_eos=True, do_sample=False))

    return {path.stem.split(".")[-1]: _rates(run)}


def ctranslate2(folder: Path, threads: int) -> Rates:
    import ctranslate2 as peer
    from ctranslate2.converters import TransformersConverter

    with tempfile.TemporaryDirectory() as made:
        TransformersConverter(str(folder)).convert(made, quantization="int8", force=True)
        generator = peer.Generator(made, "cpu", intra_threads=threads)
        vocabulary = json.loads((Path(made) / "vocabulary.json").read_text("utf-8"))
        prompts = _prompts(len(vocabulary))

        def run(count: int) -> float:
            prompt = [vocabulary[id] for id in next(prompts)]
            options = {"max_length": count, "min_length": count, "include_prompt_in_result": False}
            return _seconds(lambda: generator.generate_batch([prompt], **options))

        return {"int8": _rates(run)}


def transformers(folder: Path, threads: int) -> Rates:
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    prompts = _prompts(VOCAB)
    rates = {}
    for name in "bfloat16", "float32":
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, name))

        def run(count: int, model: Any = model) -> float:
            ids = torch.from_numpy(next(prompts))[None]
            options = {"max_new_tokens": count, "min_new_tokens": count, "do_sample": False}
            return _seconds(lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **options))

        rates[name] = _rates(run)
    return rates


def _prompts(vocab: int) -> Iterator[np.ndarray]:
    """Another one each time: who has read a prompt may remember it."""
    generator = np.random.default_rng(0)
    while True:
        yield generator.integers(FIRST, vocab, PROMPT)


def _rates(run: Callable[[int], float]) -> dict[str, float]:
    """Of a run that reads the prompt and writes so many tokens: the first comes of reading."""
    run(2)
    first = min(run(1) for _ in range(TIMES))
    more = min(run(DECODE + 1) for _ in range(TIMES))
    return {"read 512": PROMPT / first, "decode": DECODE / (more - first)}


def _seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


PEERS = {each.__name__: each for each in (openvino_genai, ctranslate2, transformers)}


if __name__ == "__main__":
    peer, source, count = sys.argv[1:]
    print(json.dumps(PEERS[peer](Path(source), int(count))))
