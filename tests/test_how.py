"""The data of "How it works": each chapter's numbers are those of the package, on any text; refusals."""

import base64
import json
import re
import zlib
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import regex

import cutaway
from cutaway.cli import main
from cutaway.commands import explain_how
from cutaway.errors import UserError
from cutaway.generate.batch.request import RequestCancelledError
from cutaway.inspect import parallel
from cutaway.inspect.arrays import log_softmax
from cutaway.inspect.how import alignment, architecture, mechanisms, plan, quantized, tokenizers, vectors
from cutaway.tokenizer import unigram_em
from cutaway.tokenizer.bpe import replaced
from tests.small import Bytes, model_file
from tests.test_page import unpacked

TEXT = "the tall thin thing, the thing thins"


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return cutaway.load(model_file(tmp_path_factory.mktemp("how") / "small.gguf"))


@pytest.mark.parametrize("text", [TEXT, "aaaa aaaa aa", "Grüße 你好 🙂\nzwei  Zeilen", "x"])
def test_every_cut_spells_the_text_and_merges_are_the_most_frequent_pairs(text: str) -> None:
    found = tokenizers.tokenizers(Bytes(), text)
    cuts = {one["name"]: one["pieces"] for one in found["cuts"]}
    assert bytes.fromhex("".join(cuts["Bytes"])).decode() == text
    for name in ("Characters", "BPE, learned here", "Unigram, learned here"):
        assert "".join(cuts[name]) == text, name
    assert cuts["Words"] == regex.findall(r"\w+|[^\w\s]+", text)
    words = Counter({one["word"]: one["count"] for one in found["bpe"]["words"]})
    now = {word: list(word) for word in words}
    for step in found["bpe"]["merges"]:
        pairs: Counter[tuple[str, str]] = Counter()
        for word, symbols in now.items():
            for pair in pairwise(symbols):
                pairs[pair] += words[word]
        assert step["count"] == pairs[tuple(step["pair"])] == max(pairs.values())
        now = {
            word: replaced(symbols, tuple(step["pair"]), "".join(step["pair"]))
            for word, symbols in now.items()
        }


def test_unigram_rounds_are_those_of_its_training_and_the_lattice_has_every_cut() -> None:
    words = Counter(regex.findall(tokenizers.WORD, TEXT))
    rounds = tokenizers.unigram(words)
    size = len({letter for word in words for letter in word}) + tokenizers.PIECES
    assert rounds[-1]["scores"] == unigram_em.train(words, size, min_frequency=1)
    counts = [one["pieces"] for one in rounds]
    assert counts == sorted(counts, reverse=True) and rounds[0]["removed"] and not rounds[-1]["removed"]
    for one in tokenizers.tokenizers(Bytes(), TEXT)["unigram"]["lattice"]:
        best = sorted((start, stop) for start, stop, _, chosen in one["edges"] if chosen)
        assert "".join(one["word"][start:stop] for start, stop in best) == one["word"]
        assert all(one["word"][a:b] in rounds[0]["scores"] for a, b, _, _ in one["edges"])


def test_words_their_neighbours_and_an_analogy(lm: Any) -> None:
    found = vectors.vectors(lm.subject, ["a", "b", "the"], ["a", "b", "c"])
    table = lm.subject.engine.weight("embedding.weight")
    rows = table / np.linalg.norm(table, axis=1, keepdims=True)
    (space,) = {one["token"] for one in found["words"]}
    assert space == " " and not any(one["whole"] for one in found["words"]), "bytes: each word is several"
    id = lm.ids(" a")[0]
    cosines = rows[: len(lm.tokenizer)] @ rows[id]
    cosines[id] = -2
    assert found["words"][0]["neighbours"][0]["cosine"] == pytest.approx(float(cosines.max()), abs=1e-5)
    assert len(found["analogy"]["found"]) == vectors.NEIGHBOURS


def test_mechanisms_have_the_models_cache_and_masks_of_the_text(lm: Any) -> None:
    found = mechanisms.mechanisms(lm.config, 6)
    rows = {one["kind"]: one for one in found["kinds"]}
    assert found["own"] == ["gqa"] and {"bahdanau", "mha", "mqa", "mla", "local", "linear"} <= rows.keys()
    assert rows["gqa"]["mask"] == ["#" * (i + 1) + "." * (5 - i) for i in range(6)]
    one = lm.config.blocks[0].attention.bytes_per_token(2)
    assert rows["gqa"]["cache"] == [one * n for n in found["lengths"]]
    assert len(set(rows["linear"]["cache"])) == 1 and rows["linear"]["mask"] is None
    assert rows["local"]["cache"][-1] < rows["gqa"]["cache"][-1] == rows["mha"]["cache"][-1] / 2


def test_the_architecture_is_the_files(lm: Any) -> None:
    found = architecture.architecture(lm)
    (block,) = found["blocks"]
    assert (block["first"], block["last"]) == (0, 2) and [one["name"] for one in block["parts"]] == [
        "attention",
        "mlp",
    ]
    assert block["parts"][0]["sizes"] == {"heads": 4, "kv_heads": 2, "key_size": 8}
    stored = {name: lm.checkpoint.tensors.later(name) for name in lm.checkpoint.tensors}
    listed = {one["name"]: one for one in block["parts"][1]["weights"]}
    assert listed["gate.weight"]["bytes"] == stored["blocks.0.mlp.gate.weight"].nbytes
    assert found["bytes"] == sum(one.nbytes for one in stored.values())
    position = next(one for one in block["parts"][0]["switches"] if one["name"] == "position")
    assert position == {"name": "position", "value": "rope size 8", "usual": False}


def test_the_plan_is_that_of_explain(lm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = parallel.Machine(1e9, 1e8, 1, "F32")
    monkeypatch.setattr(parallel, "machine", lambda *_, **__: machine)
    found = plan.plan(lm, 7)
    for one, other in zip(found["passes"], parallel.passes(lm, 7), strict=True):
        assert (one["flops"], one["bytes"], one["seconds"]) == other.total(machine) and one[
            "waits"
        ] == other.waits
        assert sum(step["seconds"] * step["times"] for step in one["steps"]) == pytest.approx(one["seconds"])
    with pytest.raises(UserError, match="0 tokens"):
        plan.plan(lm, 0)


def test_a_quantized_models_divergence(lm: Any, tmp_path: Path) -> None:
    ids = lm.ids(TEXT)
    found = quantized.quantized(lm, ids, "Q8_0")
    file = tmp_path / "q8.gguf"
    words = ["quantize", str(lm.checkpoint.source), "--type", "Q8_0", "--output", str(file)]
    assert main([*words, "--no-measure", "--force"]) == 0
    exact, other = (log_softmax(one.logits(ids).astype(np.float64)) for one in (lm, cutaway.load(file)))
    assert found["kl"] == pytest.approx((np.exp(exact) * (exact - other)).sum(-1).tolist(), abs=1e-6)
    assert len(found["kl"]) == len(ids) and found["bytes"] < found["bytes_before"]
    assert found["next"][0]["before"] == pytest.approx(float(np.exp(exact[-1].max())))
    for wrong, match in ((ids, "no type"), ([], "0 tokens"), (ids * 20, "tokens: give")):
        with pytest.raises(UserError, match=match):
            quantized.quantized(lm, wrong, "Q9" if match == "no type" else "Q8_0")


def test_explain_how_writes_the_chapters(
    lm: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alignment, "alignments", lambda text, check=None: {"steps": 1, "words": []})
    monkeypatch.setattr(explain_how, "RECORDED", ("Q8_0",))
    model, file = str(lm.checkpoint.source), tmp_path / "how.html"
    assert main(["explain", TEXT, "--model", model, "--how", "--html", str(file)]) == 0
    content, _ = unpacked(file.read_text(encoding="utf-8"))
    how = content["explanations"][0]["how"]
    assert {*how} == {
        "tokenizers",
        "vectors",
        "mechanisms",
        "alignments",
        "architecture",
        "plan",
        "quantized",
    }
    assert [one["type"] for one in how["quantized"]] == ["Q8_0"]
    for more in ([], ["--html", str(file), "--force", "--ablate", "0"]):
        assert main(["explain", TEXT, "--model", model, "--how", *more]) == 2
        assert "--how writes a page of its own" in capsys.readouterr().err


def test_attention_show_writes_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "local.html"
    assert main(["attention", "show", "local", "--window", "3", "--length", "6", "--html", str(file)]) == 0
    block = re.search(r'id="data">([^<]*)</script>', file.read_text(encoding="utf-8"))
    assert block is not None
    mask, cost, *curves, options = json.loads(zlib.decompress(base64.b64decode(block[1])))
    assert mask["values"][4] == [0, 0, 1, 1, 1, 0] and options["rows"] == [["window", "3"]]
    assert cost["rows"][0][1].startswith("min(n, window)")
    assert [one["title"] for one in curves] == ["Prefill", "Decode", "Cache"]
    assert main(["attention", "show", "linear", "--html", str(file), "--force"]) == 0
    assert main(["attention", "show", "linear", "--html", str(file)]) == 2
    assert "Wrote" in capsys.readouterr().err


def test_a_translator_aligns_what_it_writes_with_where_it_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alignment, "LONGEST", 4)  # which is learned sooner
    monkeypatch.setattr(alignment, "STEPS", 120)
    alignment.trained.cache_clear()
    found = alignment.alignments("Thin thin, seen word! Ünï x longer")["words"]
    alignment.trained.cache_clear()
    assert [one["word"] for one in found] == ["thin", "seen", "word"]
    right = [a == b for one in found for a, b in zip(one["written"], one["word"][::-1], strict=True)]
    assert np.mean(right) > 0.7, "of letters that were written, by chance 1 in 26 is right"
    places, weights = np.arange(4), [np.array(one["weights"]) for one in found]
    assert all(np.allclose(one.sum(1), 1, atol=1e-5) for one in weights)
    backwards = [np.corrcoef(one @ places, places[::-1])[0, 1] for one in weights]
    assert np.mean(backwards) > 0.6, "what is written first was read last"
    with pytest.raises(UserError, match="0 characters"):
        alignment.alignments("")


def test_the_translators_training_ends_where_its_client_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    how = pytest.importorskip("cutaway.serve.how")
    called: list[int] = []

    def leave() -> None:
        called.append(len(called))
        if len(called) == 3:
            raise RequestCancelledError

    monkeypatch.setattr(how, "check_stopped", leave)
    monkeypatch.setattr(how.Service, "check_model", lambda self, name: None)
    service, http = object.__new__(how.Service), how.HTTPRequest({"type": "http"})
    for _ in range(2):
        called.clear()
        with pytest.raises(RequestCancelledError):
            how.aligned(service, how.HowRequest(text="word"), http)
        assert len(called) == 3, "what was stopped is not kept as trained"
