"""llama.cpp as a judge: what it makes of a GGUF file, through the `xllamacpp` wheel."""

import json
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest


@contextmanager
def opened(
    path: Path, vocab: int, context: int = 256, adapter: Path | None = None
) -> Iterator[Callable[[Sequence[int]], np.ndarray]]:
    """The file in llama.cpp: a function from ids to the log-probabilities float64 [v] of what comes next.

    The last of the ids is whole characters: llama.cpp is made to draw it again, for it gives no probabilities
    beside a token that ends within a character. What is drawn changes none of them: they are from before.
    """
    server = _server(path, context, adapter)

    def scores(ids: Sequence[int]) -> np.ndarray:
        asked = {
            "prompt": list(ids),
            "n_predict": 1,
            "n_probs": vocab,
            "temperature": 1.0,
            "logit_bias": [[ids[-1], 1e6]],
            "cache_prompt": False,
        }
        answer = server.handle_completions(asked)
        found = np.full(vocab, np.nan)
        for each in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            found[each["id"]] = each["logprob"]
        return found

    yield scores


def pooled(path: Path, ids: Sequence[int], kind: str = "MEAN") -> np.ndarray:
    """The vector float32 [d] that llama.cpp pools of an encoder's outputs for these ids, not normalised."""
    xllamacpp = pytest.importorskip("xllamacpp")
    params = _params(path, 256)
    params.embedding, params.embd_normalize = True, -1
    params.pooling_type = getattr(xllamacpp.llama_pooling_type, f"LLAMA_POOLING_TYPE_{kind}")
    answer = xllamacpp.Server(params).handle_embeddings({"input": list(ids)})
    return np.array(answer["data"][0]["embedding"], np.float32)


def translated(path: Path, source: Sequence[int], target: Sequence[int], vocab: int) -> np.ndarray:
    """An encoder-decoder's logits float32 [t v] after each of the target's ids, through llama-cpp-python.

    The server that the others ask opens no such model.
    """
    llama = pytest.importorskip("llama_cpp")
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
    assert model, path
    params = llama.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch = 256, 1, 1
    params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.type_k = params.type_v = llama.GGML_TYPE_F32
    context = llama.llama_init_from_model(model, params)
    ids = (llama.llama_token * len(source))(*source)
    assert llama.llama_encode(context, llama.llama_batch_get_one(ids, len(source))) == 0
    batch = llama.llama_batch_init(len(target), 0, 1)
    batch.n_tokens = len(target)
    for n, id in enumerate(target):
        batch.token[n], batch.pos[n], batch.n_seq_id[n], batch.logits[n] = id, n, 1, True
        batch.seq_id[n][0] = 0
    assert llama.llama_decode(context, batch) == 0
    found = [
        np.ctypeslib.as_array(llama.llama_get_logits_ith(context, n), (vocab,)).copy()
        for n in range(len(target))
    ]
    llama.llama_batch_free(batch)
    llama.llama_free(context)
    llama.llama_model_free(model)
    return np.stack(found)


def tokenizing(path: Path) -> Callable[[str, bool], list[int]]:
    """llama.cpp's tokenizer of the file: ids of a text, whose control tokens are obeyed or not."""
    server = _server(path, 256)

    def encode(text: str, special: bool) -> list[int]:
        body = json.dumps({"content": text, "add_special": False, "parse_special": special}).encode()
        asked = urllib.request.Request(
            f"{server.listening_address}/tokenize", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(asked) as answer:
            return json.loads(answer.read())["tokens"]

    return encode


def _params(path: Path, context: int) -> Any:
    xllamacpp = pytest.importorskip("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.n_gpu_layers = context, 1, 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = (
        1  # more would spin beside the other worker
    )
    params.warmup, params.cache_prompt, params.verbosity, params.port = False, False, -1, 0
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return params


def _server(path: Path, context: int, adapter: Path | None = None) -> Any:
    params, xllamacpp = _params(path, context), pytest.importorskip("xllamacpp")
    if adapter is not None:
        beside = xllamacpp.CommonAdapterLoraInfo()
        beside.path, beside.scale = str(adapter), 1.0
        params.lora_adapters = [beside]
    return xllamacpp.Server(params)
