"""The chain from a text to other engines: each step reads what the one before wrote, with the same ids."""

import json
from collections.abc import Callable
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cutaway
from cutaway.cli import main
from cutaway.tokenizer import Tokenizer
from tests import llama_cpp, serving
from tests.training import folder_of_text

CONFIG = """
model:
  width: 32
  context: 64
  blocks:
    - times: 2
      attention: {kind: gqa, heads: 4, kv_heads: 2, key_size: 8, position: {kind: rope, size: 8}}
      mlp: {hidden: 64}
data: {sources: [{path: texts}], tokenizer: tokenizer.json, validation_fraction: 0.2}
steps: 30
batch_size: 8
micro_batch_size: 8
compile: never
optimizer: {kind: adamw, learning_rate: 0.01}
intervals: {evaluate: 0, save: 30, sample: 0}
"""
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
SPECIAL = ["<|user|>", "<|assistant|>"]
HARD = [
    "It is a truth",
    "na\u00efve \u4e16\u754c \U0001f99c",
    "<|endoftext|> or <|user|>?",
    "  a\n\n\tb 1234567",
    "",
]

Run = Callable[..., str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer trained on a folder of text, and a model pretrained with it, which has a chat template."""
    folder = tmp_path_factory.mktemp("chain")
    folder_of_text(folder / "texts" / "deeper")
    (folder / "texts" / "picture").write_bytes(b"\x89PNG\0")
    (folder / "run.yaml").write_text(CONFIG)
    words = [word for token in SPECIAL for word in ("--special", token)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["tokenizer", "train", "texts", "--size", "300", *words]) == 0
        assert main(["pretrain", "run.yaml", "--output", "run"]) == 0
    (folder / "run" / "model" / "chat_template.jinja").write_text(TEMPLATE)
    return folder


@pytest.fixture
def output(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """What a command line prints, run in the folder."""
    monkeypatch.chdir(folder)

    def run(*words: str, given: str = "") -> str:
        monkeypatch.setattr("sys.stdin", TextIOWrapper(BytesIO(given.encode())))
        capsys.readouterr()
        assert main(words) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    return run


def test_every_tokenizer_verb_opens_a_run(output: Run) -> None:
    for place in ("run", "run/model"):
        for text in HARD[:3]:
            ids = output("tokenizer", "encode", text, "-t", "tokenizer.json")
            assert output("tokenizer", "encode", text, "-t", place) == ids
            assert output("tokenizer", "decode", *ids.split(), "-t", place) == f"{text}\n"
            assert output("tokenizer", "count", text, "-t", place) == f"{len(ids.split())}\n"
        assert "tokens in" in output("tokenizer", "show", "It is", "-t", place)
        assert "300 tokens" in output("tokenizer", "report", place, "--model", place)
        assert "300 tokens" in output("tokenizer", "convert", place, "again.json", "--force")
        assert output("tokenizer", "compare", "tokenizer.json", place).count(" 300") == 2
        assert Tokenizer.load("again.json").encode(HARD[1]) == Tokenizer.load("run").encode(HARD[1])


def test_what_is_written_is_what_was_trained(folder: Path, output: Run) -> None:
    prompt = ("It is a truth", "--max-tokens", "12", "--json")
    generated = json.loads(output("generate", *prompt, "--model", "run"))
    story = json.loads(output("explain", "It is a truth", "--model", "run", "--json"))
    assert [token["id"] for token in story["tokens"]] == generated["prompt_ids"]
    spoken = output("chat", "run", "--temperature", "0", "--max-tokens", "8", given="It is\n")
    output("convert", "run", "run.gguf")
    output("convert", "run", "folder")
    output("quantize", "run", "--type", "Q8_0", "--output", "small.gguf", "--no-measure")
    trained = Tokenizer.load("tokenizer.json")
    for place in ("run.gguf", "folder", "small.gguf"):
        for text in HARD:
            assert Tokenizer.load(place).encode(text) == trained.encode(text), place
        assert Tokenizer.load(place).eos == trained.eos == 299
    for place in ("run.gguf", "folder"):
        written = json.loads(output("generate", *prompt, "--model", place))
        assert (written["prompt_ids"], written["ids"]) == (generated["prompt_ids"], generated["ids"]), place
        assert output("chat", place, "--temperature", "0", "--max-tokens", "8", given="It is\n") == spoken
    with serving.running(cutaway.load("small.gguf"), max_sequences=2) as server:
        body: dict[str, Any] = {"model": serving.NAME, "max_tokens": 8, "temperature": 0}
        answer = server.post(
            "/v1/chat/completions", body | {"messages": [{"role": "user", "content": "It is"}]}
        )
        own = cutaway.load("small.gguf").chat([{"role": "user", "content": "It is"}], max_tokens=8)
        assert answer.json()["choices"][0]["message"]["content"] == own.text


def test_transformers_and_llama_cpp_read_the_same(folder: Path, output: Run) -> None:
    output("convert", "run", "judged.gguf")
    output("convert", "run", "judged")
    lm = cutaway.load("run")
    ids = lm.ids("It is a truth")
    expected = lm.logits(ids).astype(np.float64)
    greedy = lm.generate(ids, max_tokens=12).ids
    encode = llama_cpp.tokenizing(folder / "judged.gguf")
    for text in HARD:
        assert encode(text, False) == lm.tokenizer.encode(text)
        assert encode(text, True) == lm.tokenizer.encode(text, "allow")
    with llama_cpp.opened(folder / "judged.gguf", lm.config.vocab, context=64) as scores:
        for length in range(len(ids), len(ids) + len(greedy)):
            theirs = scores([*ids, *greedy][:length])[:300]
            assert theirs.argmax() == [*ids, *greedy][length]
        ours = expected[-1] - np.logaddexp.reduce(expected[-1])
        np.testing.assert_allclose(scores(ids)[:300], ours[:300], atol=1e-3)
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    words = transformers.AutoTokenizer.from_pretrained("judged")
    for text in HARD:
        assert words.encode(text, split_special_tokens=True) == lm.tokenizer.encode(text)
        assert words.encode(text) == lm.tokenizer.encode(text, "allow")
    model = transformers.AutoModelForCausalLM.from_pretrained("judged")
    with torch.no_grad():
        np.testing.assert_allclose(model(torch.tensor([ids])).logits[0].numpy(), expected, atol=1e-3)
        written = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)
    assert written[0, len(ids) :].tolist() == list(greedy)
