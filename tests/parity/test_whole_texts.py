"""Texts that decoders embed and classify, with all that their tokenizers put around them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

import cutaway
from cutaway.weights import save
from tests import serving
from tests.parity.test_classifiers import DECODER
from tests.parity.tiny import perturbed, transformers

TEXTS = ["a cat", "sat", "b"]
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
TEMPLATES = {"end": "$A </s>", "both": "<s> $A </s>", "two": "$A </s> </s>"}


def folder(path: Path, template: str, kind: str) -> tuple[Any, Any]:
    """A decoder of transformers and its tokenizer, which puts this template around a text."""
    words = {one: n for n, one in enumerate(["<unk>", "<s>", "</s>", "<pad>", *LETTERS])}
    tokenizer = Tokenizer(models.BPE(words, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "<pad>"])
    marks = [(one, words[one]) for one in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=marks)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(path)
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3, "num_labels": 3, "vocab_size": len(words)}
    model = perturbed(getattr(transformers, kind), "Qwen3Config", DECODER | {"head_dim": 8} | ids)
    model.save_pretrained(path)
    return model, transformers.AutoTokenizer.from_pretrained(path)


def vectors(model: Any, tokenizer: Any, pooling: str, most: int = 64) -> np.ndarray:
    """transformers' vectors of the texts, of length one."""
    found = []
    for text in TEXTS:
        given = tokenizer(text, return_tensors="pt", truncation=True, max_length=most)["input_ids"]
        hidden = model.model(given).last_hidden_state[0]
        pooled = hidden[-1] if pooling == "last" else hidden.mean(0)
        found.append((pooled / pooled.norm()).numpy())
    return np.stack(found)


@torch.no_grad()
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_decoder_embeds_the_end_token_that_its_tokenizer_appends(template: str, tmp_path: Path) -> None:
    model, tokenizer = folder(tmp_path / "model", TEMPLATES[template], "AutoModelForCausalLM")
    lm = cutaway.load(tmp_path / "model", engine="pytorch")
    whole = tokenizer("a cat")["input_ids"]
    assert lm.whole_ids("a cat") == whole
    assert lm.ids("a cat") == [one for one in whole if one != 2]  # which a model goes on from
    for pooling in ("last", "mean"):
        expected = vectors(model, tokenizer, pooling)
        assert np.abs(lm.embed(TEXTS, pooling) - expected).max() < 1e-5
    short = cutaway.load(tmp_path / "model", context=4, engine="pytorch")
    assert (
        np.abs(short.embed(TEXTS, "last", truncate=True) - vectors(model, tokenizer, "last", 4)).max() < 1e-5
    )


@torch.no_grad()
def test_a_server_and_a_gguf_file_embed_the_end_token_too(tmp_path: Path) -> None:
    model, tokenizer = folder(tmp_path / "model", TEMPLATES["both"], "AutoModelForCausalLM")
    lm = cutaway.load(tmp_path / "model", engine="pytorch")
    expected = vectors(model, tokenizer, "last")
    with serving.running(lm, pooling="last") as server:
        answer = server.post("/v1/embeddings", {"input": TEXTS}).json()
    found = np.array([one["embedding"] for one in answer["data"]], np.float32)
    assert np.abs(found - expected).max() < 1e-5 and answer["usage"]["prompt_tokens"] == 9 + 2 * 3
    save.write_checkpoint(tmp_path / "model.gguf", lm.checkpoint)
    for engine, most in {
        "pytorch": 1e-5,
        "auto": 1e-3,
    }.items():  # the runtime keeps keys and values as halves
        read = cutaway.load(tmp_path / "model.gguf", engine=engine)
        assert np.abs(read.embed(TEXTS, "last") - expected).max() < most


@torch.no_grad()
def test_a_decoder_classifies_texts_with_the_end_token_too(tmp_path: Path) -> None:
    model, tokenizer = folder(tmp_path, TEMPLATES["both"], "AutoModelForSequenceClassification")
    found = cutaway.load(tmp_path).classify(TEXTS).logits
    for text, own in zip(TEXTS, found, strict=True):
        expected = model(tokenizer(text, return_tensors="pt")["input_ids"]).logits[0].numpy()
        assert np.abs(own - expected).max() < 1e-5
