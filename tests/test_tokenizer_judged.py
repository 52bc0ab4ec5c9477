"""Random tokenizers, each with what real files rarely combine, judged by the library that reads the file."""

import json
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from cutaway.tokenizer import Tokenizer
from cutaway.tokenizer.bpe import BYTE_TOKENS, BYTES
from tests import inputs

LETTERS = "ab é▁\n"


def text_of(noise: random.Random, letters: str, longest: int = 12) -> str:
    return "".join(noise.choices(letters, k=noise.randrange(longest)))


def added_token(noise: random.Random, id: int, text: str, strips: str) -> dict[str, Any]:
    """One of them; `tokenizers` panics where an lstrip token follows an rstrip one: a file has one kind."""
    flags = {flag: noise.random() < 0.3 for flag in (strips, "normalized", "special")}
    flags = {"lstrip": False, "rstrip": False} | flags
    return {"id": id, "content": text, "single_word": False, **flags}


def tokenizer_json(noise: random.Random) -> dict[str, Any]:
    """A BPE over characters or bytes, or a Unigram: some letters missing, some byte tokens, added tokens."""
    kind = noise.choice(["characters", "bytes", "unigram"])
    alphabet = BYTES if kind == "bytes" else LETTERS
    kept = [one for one in alphabet if noise.random() < (0.9 if kind == "bytes" else 0.7)] or ["a"]
    merges = {(noise.choice(kept), noise.choice(kept)) for _ in range(8)}
    in_bytes = [token for token in BYTE_TOKENS if noise.random() < 0.9] if kind != "bytes" else []
    texts = list(dict.fromkeys(["<unk>", *kept, *(a + b for a, b in merges), *in_bytes]))
    vocabulary = {text: id for id, text in enumerate(texts)}
    fallback = bool(in_bytes) and noise.random() < 0.7
    model: dict[str, Any] = {"type": "BPE", "vocab": vocabulary, "merges": sorted(map(list, merges))}
    model |= {"byte_fallback": fallback, "fuse_unk": noise.random() < 0.5}
    model["unk_token"] = None if kind == "bytes" else "<unk>"
    if kind == "unigram":
        pieces = [[text, -noise.choice([1.0, 2.5, 3.25, 7.125])] for text in vocabulary]
        model = {"type": "Unigram", "vocab": pieces, "unk_id": 0, "byte_fallback": fallback}
    # `tokenizers` decodes a byte-level added token that is not ASCII to broken UTF-8; ours is its text.
    names = {text_of(noise, "ab <" if kind == "bytes" else "ab <▁é") for _ in range(noise.randrange(4))} - {
        "",
        *vocabulary,
    }
    strips = noise.choice(["lstrip", "rstrip"])
    added = [added_token(noise, len(texts) + i, name, strips) for i, name in enumerate(sorted(names))]
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    opened = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    metaspace = {"type": "Metaspace", "replacement": "▁", "split": noise.random() < 0.5}
    metaspace["prepend_scheme"] = noise.choice(["always", "first", "never"])
    whole: dict[str, Any] = {"added_tokens": added, "model": model, "normalizer": None, "pre_tokenizer": None}
    if kind == "bytes":
        byte_level = {"type": "ByteLevel", "add_prefix_space": noise.random() < 0.5, "trim_offsets": True}
        return whole | {"pre_tokenizer": byte_level, "decoder": byte_level}
    if noise.random() < 0.5 and not fallback:
        return whole | {"pre_tokenizer": metaspace, "decoder": metaspace}
    strip = {"type": "Strip", "content": " ", "start": 1, "stop": 0}
    last = [{"type": "ByteFallback"}] * fallback + [{"type": "Fuse"}] + [strip] * (noise.random() < 0.5)
    rules = noise.choice([[spaces], [{"type": "Prepend", "prepend": "▁"}, spaces]])
    normalizer = noise.choice([None, {"type": "Sequence", "normalizers": rules}])
    return whole | {
        "normalizer": normalizer,
        "decoder": {"type": "Sequence", "decoders": [opened, *last]},
    }


def differences(whole: dict[str, Any], path: Path, texts: list[str]) -> list[tuple[object, ...]]:
    path.write_text(json.dumps(whole))
    theirs, ours = tokenizers.Tokenizer.from_file(str(path)), Tokenizer.load(path)
    out: list[tuple[object, ...]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for text in texts:
            expected = theirs.encode(text, add_special_tokens=False).ids
            found = ours.encode(text, special="allow")
            if found != expected:
                out.append((text, expected, found))
            decoded = theirs.decode(expected, skip_special_tokens=False)
            if ours.decode(expected) != decoded:
                out.append((expected, decoded, ours.decode(expected)))
    return out


@pytest.mark.parametrize("seed", range(30))
def test_random_tokenizers(seed: int, tmp_path: Path) -> None:
    for number in range(20):
        noise = random.Random(seed * 1000 + number)
        whole = tokenizer_json(noise)
        letters = LETTERS + "c☃ü" + "".join(token["content"] for token in whole["added_tokens"]) * 2
        texts = [text_of(noise, letters, 20) for _ in range(15)]
        texts += [first["content"] + text for first in whole["added_tokens"] for text in texts[:3]]
        assert not differences(whole, tmp_path / "tokenizer.json", texts)


def test_a_gemma_vocabulary_without_one_byte_token() -> None:
    """Its tab is a token of its own, `<0x09>` is none; its indentation is made of added tokens."""
    path = inputs.path("gemini")
    theirs, ours = tokenizers.Tokenizer.from_file(str(path)), Tokenizer.load(path)
    noise = random.Random(3)
    letters = "ab (x=1):\t\n  \u2581<>éß日本☃\U0001f9ff\U00013000\u0600\u200d\x07"
    texts = ["def f():\n\treturn 1", "if a:\n    b\n        c", "\U0001f9ff\U00013000", "<bos><unused3>"]
    for text in [*texts, *(text_of(noise, letters, 60) for _ in range(1500))]:
        ids = theirs.encode(text, add_special_tokens=False).ids
        assert ours.encode(text, special="allow") == ids
        assert ours.decode(ids) == theirs.decode(ids, skip_special_tokens=False)


def test_an_added_token_in_the_space_that_one_before_it_takes(tmp_path: Path) -> None:
    flags = {"lstrip": False, "single_word": False, "normalized": False, "special": False}
    added = [
        {"id": 5, "content": "<r>", "rstrip": True} | flags,
        {"id": 6, "content": " \n", "rstrip": False} | flags,
    ]
    model = {"type": "BPE", "vocab": {text: id for id, text in enumerate("ab \nu")}, "merges": []}
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"added_tokens": added, "model": model}))
    theirs, ours = tokenizers.Tokenizer.from_file(str(path)), Tokenizer.load(path)
    for text in ("<r>  \n a", "<r> a", "<r>  \n", "b<r> \n<r>\n "):
        ids = theirs.encode(text).ids
        assert ours.encode(text) == ids
        spans = [(at, at + 3, 5) for at in range(len(text)) if text.startswith("<r>", at)]
        assert ours.encode_parts(text, spans) == ids


def gguf_metadata(model: str, pieces: list[tuple[str, float, int]]) -> dict[str, Any]:
    tokens, scores, kinds = zip(*pieces, strict=True)
    made = {"model": model, "tokens": list(tokens), "unknown_token_id": np.uint32(0), "pre": "gpt-2"}
    made |= {"scores": np.array(scores, np.float32), "token_type": np.array(kinds, np.int32)}
    made |= {"merges": [], "add_space_prefix": False, "remove_extra_whitespaces": False}
    return {f"tokenizer.ggml.{key}": value for key, value in made.items()}


def test_a_unigram_in_gguf_sums_in_64_bits_as_llama_cpp_does() -> None:
    """ "abc" is cut in two ways, whose scores are equal once they are rounded to 32 bits."""
    pieces = [("<unk>", 0.0, 2), ("x", -5000.0, 1), ("a", -1e-4, 1), ("bc", -1e-4, 1), ("ab", -1e-5, 1)]
    pieces += [("c", -1e-5, 1), ("y", -9000.0, 1), ("@", 0.0, 4), ("old", -1.0, 5)]
    tok = Tokenizer.from_gguf(gguf_metadata("t5", pieces))
    assert tok.encode("xabc") == [1, 4, 5]  # in 32 bits "a bc", found first, is no worse
    assert tok.encode("a@bc") == [2, 7, 3]  # a user-defined symbol is found before all else
    assert tok.encode("old") == [8]  # an unused piece is matched


def test_names_that_make_a_control_token_in_llama_cpp() -> None:
    """A file lists `<|im_end|>` as ordinary or user-defined: plain text that spells it is not the token."""
    names = ["<|im_end|>", "<PRE>", "▁<MID>", "</s>", "<|file_sep|>"]
    characters = [(one, 0.0, 1) for one in BYTES]
    for kind in (1, 4):
        for name in names:
            metadata = gguf_metadata("gpt2", [*characters, (name, 0.0, kind), ("<x>", 0.0, 4)])
            tok = Tokenizer.from_gguf(metadata)
            assert tok.is_special(256) and tok.encode(name, special="allow") == [256]
            assert 256 not in tok.encode(f"a{name}b") and tok.encode("<x>") == [257]
    tool = [("</s>", 0.0, 1), ("<|tool_response>", 0.0, 3)]
    assert not Tokenizer.from_gguf(gguf_metadata("gpt2", [*characters, *tool])).is_special(256)


def test_added_tokens_of_a_gguf_file_decode_to_their_own_text() -> None:
    """llama.cpp opens U+2581 to a space in ordinary tokens alone."""
    pieces = [("<unk>", 0.0, 2), *((token, 0.0, 6) for token in BYTE_TOKENS), ("▁a", 0.0, 1), ("▁b", 0.0, 4)]
    tok = Tokenizer.from_gguf(gguf_metadata("llama", pieces))
    assert tok.decode([257, 258]) == " a▁b"
