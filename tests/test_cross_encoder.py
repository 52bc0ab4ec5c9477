"""Cross-encoders: a query and a text read together, judged by transformers on random weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cutaway
from cutaway.errors import UserError
from cutaway.store import resolve
from tests import serving

TEXTS = ["Paris is in France.", "A cat.", "the capital of France is Paris, they say", "unaffable"]
QUERY = "Where is Paris?"


def made(folder: Path, **more: Any) -> Any:
    """transformers' own BERT of two layers with a head of one label, saved beside MiniLM's tokenizer."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = BertConfig(**sizes, max_position_embeddings=64, **{"num_labels": 1, **more})
    model = BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.3)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
        if (found := resolve("minilm") / name).is_file():
            shutil.copy(found, folder / name)
    return model


def truth(model: Any, folder: Path, texts: list[str]) -> np.ndarray:
    from transformers import BertTokenizerFast

    tokenizer = BertTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    given = tokenizer([QUERY] * len(texts), texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        return model(**given).logits[:, 0].numpy()


def test_scores_are_transformers(tmp_path: Path) -> None:
    model = made(tmp_path)
    logits = truth(model, tmp_path, TEXTS)
    lm = cutaway.load(tmp_path)
    scores = lm.rank(QUERY, TEXTS)
    assert np.allclose(scores, 1 / (1 + np.exp(-logits)), atol=1e-5) and np.ptp(logits) > 0.1
    assert np.allclose(lm.rank(QUERY, TEXTS, batch=1), scores, atol=1e-6)
    path = tmp_path / "config.json"
    plain = {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}}
    path.write_text(json.dumps(json.loads(path.read_text()) | plain))
    assert np.allclose(cutaway.load(tmp_path).rank(QUERY, TEXTS), logits, atol=1e-4)
    with pytest.raises(UserError, match="reads at most 64"):
        lm.rank(QUERY, ["word " * 90])


def test_robertas_head_is_transformers_too(tmp_path: Path) -> None:
    """Two separators between the texts, no segments, positions after the padding id's."""
    from transformers import RobertaConfig, RobertaForSequenceClassification

    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    more = {"max_position_embeddings": 66, "vocab_size": 30522, "type_vocab_size": 1, "num_labels": 1}
    marks = {"pad_token_id": 1, "bos_token_id": 101, "eos_token_id": 102}
    model = RobertaForSequenceClassification(RobertaConfig(**sizes, **more, **marks)).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(0, 0.3)
    model.save_pretrained(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if (found := resolve("minilm") / name).is_file():
            shutil.copy(found, tmp_path / name)
    words = json.loads((tmp_path / "tokenizer.json").read_text())
    words["post_processor"] = {"type": "RobertaProcessing", "sep": ["[SEP]", 102], "cls": ["[CLS]", 101]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(words))
    lm = cutaway.load(tmp_path)
    encode = lm.tokenizer.encode
    for text in TEXTS:
        ids = torch.tensor([[101, *encode(QUERY), 102, 102, *encode(text), 102]])
        with torch.no_grad():
            logit = model(ids).logits.item()
        assert lm.rank(QUERY, [text]) == pytest.approx([1 / (1 + np.exp(-logit))], abs=1e-5)


def test_a_cross_encoder_ranks_and_scores_what_is_sent(tmp_path: Path) -> None:
    made(tmp_path)
    lm = cutaway.load(tmp_path)
    scores = lm.rank(QUERY, TEXTS)
    with serving.running(lm) as server:
        ranked = server.post("/v1/rerank", {"query": QUERY, "documents": TEXTS}).json()
        found = {one["index"]: one["relevance_score"] for one in ranked["results"]}
        assert [found[i] for i in range(4)] == pytest.approx(scores.tolist(), abs=1e-6)
        assert [one["index"] for one in ranked["results"]] == np.argsort(-scores).tolist()
        scored = server.post("/v1/score", {"text_1": QUERY, "text_2": TEXTS}).json()
        assert [one["score"] for one in scored["data"]] == pytest.approx(scores.tolist(), abs=1e-6)
        assert scored["usage"] == ranked["usage"] and scored["usage"]["total_tokens"] > 20
        long = server.post("/v1/rerank", {"query": QUERY, "documents": ["word " * 90]})
        assert long.status_code == 400 and "maximum context length is 64" in long.text


def test_what_is_no_cross_encoder_is_refused(tmp_path: Path) -> None:
    made(tmp_path, num_labels=3)
    with pytest.raises(UserError, match="no head with one label"):
        cutaway.load(tmp_path).rank(QUERY, TEXTS)
