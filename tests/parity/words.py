"""A vocabulary of one-letter tokens, as GGUF metadata: enough for llama.cpp to open a tiny model."""

import numpy as np

VOCAB = 96
WORDS: dict[str, object] = {
    "general.name": "tiny",  # llama.cpp asks models with a family's name for that family's control tokens
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "gpt-2",
    "tokenizer.ggml.tokens": ["<s>", "</s>", *(chr(33 + i) for i in range(93)), "ab"],
    "tokenizer.ggml.token_type": np.array([3, 3] + [1] * 94, np.int32),
    "tokenizer.ggml.merges": ["a b"],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.add_bos_token": False,
}
