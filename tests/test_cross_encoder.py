"""Cross-encoders: a query and a text read together, judged by transformers on random weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

import cutaway
from cutaway.errors import UserError
from cutaway.serve.openai.embeddings import embed
from cutaway.serve.openai.schema import EmbeddingRequest
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
    assert lm.engine_choice[0] == "runtime" and not lm.engines.built  # without PyTorch
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


def served(folder: Path) -> Any:
    """The service of `cutaway serve FOLDER`."""
    from cutaway.commands.serve import Loader
    from cutaway.commands.serve_options import Loading, Several
    from cutaway.serve.service import Limits

    return Loader((str(folder),), Loading(), Several(), Limits()).models().default


def test_what_is_served_reads_its_own_folder_wherever_the_server_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors name it by its name alone, which a folder of another model may have where the server runs."""
    made(tmp_path / "own" / "model")
    shutil.copytree(tmp_path / "own" / "model", tmp_path / "elsewhere" / "model")
    decoy = tmp_path / "elsewhere" / "model" / "model.safetensors"
    weights = safetensors.torch.load_file(decoy)
    safetensors.torch.save_file({name: -one for name, one in weights.items()}, decoy)
    (tmp_path / "empty").mkdir()
    expected = cutaway.load(tmp_path / "own" / "model").rank(QUERY, TEXTS)
    for place in ("empty", "elsewhere"):
        monkeypatch.chdir(tmp_path / place)
        service = served(tmp_path / "own" / "model")
        with serving.running(service.lm) as server:
            answer = server.post("/v1/score", {"text_1": QUERY, "text_2": TEXTS}).json()
        found = [one["score"] for one in answer["data"]]
        assert found == pytest.approx(expected.tolist(), abs=1e-6)
        assert str(service.lm.checkpoint.source) == "model"


def test_what_follows_the_pooling_is_the_served_folders_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dense layer of sentence-transformers, which the server reads beside the weights too."""
    folder = tmp_path / "model"
    made(folder)
    (folder / "2_Dense").mkdir()
    kinds = [{"type": "models.Transformer", "path": ""}, {"type": "models.Dense", "path": "2_Dense"}]
    (folder / "modules.json").write_text(json.dumps(kinds))
    facts = {"out_features": 8, "bias": False, "activation_function": "torch.nn.modules.linear.Identity"}
    (folder / "2_Dense" / "config.json").write_text(json.dumps(facts))
    weight = {"linear.weight": torch.randn(8, 32)}
    safetensors.torch.save_file(weight, folder / "2_Dense" / "model.safetensors")
    expected = cutaway.load(folder).embed(TEXTS)
    monkeypatch.chdir(folder)
    found, _ = embed(served(folder), EmbeddingRequest(input=TEXTS))
    assert found.shape == (4, 8) and np.abs(found - expected).max() < 1e-6


def test_what_is_no_cross_encoder_is_refused(tmp_path: Path) -> None:
    made(tmp_path, num_labels=3)
    with pytest.raises(UserError, match="no head with one label"):
        cutaway.load(tmp_path).rank(QUERY, TEXTS)
