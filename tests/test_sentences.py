"""Sentence vectors: MiniLM against transformers, a tiny BERT both directions, and the laws of `embed`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cutaway
from cutaway.errors import UserError
from cutaway.hooks import tracing
from cutaway.model.config import Encoder
from cutaway.model.config_dict import from_dict, to_dict
from cutaway.weights import build, load, save
from tests import inputs

transformers = pytest.importorskip("transformers")
transformers.utils.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()

EXACT = 1e-5
WORDS = [
    "the",
    "of",
    "river",
    "bank",
    "money",
    "slowly",
    "café",
    "naïve",
    "東京",
    "данные",
    "42",
    "3.14",
    "don't",
    "e-mail",
    "...",
    "(so)",
    "ümlaut",
    "½",
    "😀",
]
HOSTILE = [
    "",
    " ",
    "\x00\x01\x7f",
    "\u200b\u200d\ufeff",
    "a" * 150,
    "é" * 40 + "e\u0301" * 20,
    "مرحبا بالعالم",
    "👩‍👩‍👧‍👦 family",
    "##ing ##",
    "DROP TABLE users; --",
]


def sentences() -> list[str]:
    """A hundred: ten hostile, the others of 1 to 45 words."""
    draw = np.random.default_rng(0)
    return HOSTILE + [" ".join(draw.choice(WORDS, 1 + i // 2)) for i in range(90)]


@pytest.fixture(scope="module")
def lm() -> cutaway.LanguageModel:
    return cutaway.load(inputs.path("minilm"))


@pytest.fixture(scope="module")
def vectors(lm: cutaway.LanguageModel) -> np.ndarray:
    return lm.embed(sentences())


@torch.no_grad()
def theirs(folder: Path, texts: list[str]) -> dict[str, np.ndarray]:
    """By transformers' own model and tokenizer, one text at a time."""
    words = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder).eval()
    xs = [model(**words(text, return_tensors="pt")).last_hidden_state[0] for text in texts]
    pooled = {"mean": [x.mean(0) for x in xs], "cls": [x[0] for x in xs], "last": [x[-1] for x in xs]}
    return {name: torch.nn.functional.normalize(torch.stack(of)).numpy() for name, of in pooled.items()}


def test_minilm_equals_transformers(lm: cutaway.LanguageModel) -> None:
    texts = sentences()
    for pooling, expected in theirs(inputs.path("minilm"), texts).items():
        assert np.abs(lm.embed(texts, pooling) - expected).max() < EXACT  # pyright: ignore


def test_padding_and_order_change_no_vector(lm: cutaway.LanguageModel, vectors: np.ndarray) -> None:
    texts = sentences()
    assert vectors.dtype == np.float32 and vectors.shape == (100, 384)
    alone = np.concatenate([lm.embed([text]) for text in texts[::7]])
    assert np.abs(alone - vectors[::7]).max() < 1e-6
    assert np.abs(lm.embed(texts[::-1], batch=7)[::-1] - vectors).max() < 1e-6
    assert np.abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-6
    raw = lm.embed(texts[:20], normalise=False)
    assert np.abs(raw / np.linalg.norm(raw, axis=1, keepdims=True) - vectors[:20]).max() < 1e-6


def test_what_means_alike_is_near(lm: cutaway.LanguageModel) -> None:
    a, b, c = lm.embed(["A cat sits on a mat.", "A kitten rests on a rug.", "Interest rates rose again."])
    assert a @ b > 0.5 > 0.2 > a @ c


def test_a_control_token_that_is_spelt_is_text(lm: cutaway.LanguageModel) -> None:
    ids = lm.ids("[SEP] [CLS]")
    assert [id for id in ids if lm.tokenizer.is_special(id)] == [ids[0], ids[-1]]


def test_nothing_is_cut_unless_asked(lm: cutaway.LanguageModel) -> None:
    with pytest.raises(UserError, match=r"text 1 has 602 tokens, and this model reads at most 512"):
        lm.embed(["short", "word " * 600])
    cut = lm.embed(["word " * 600], truncate=True)
    assert np.abs(cut - lm.embed(["word " * 510])).max() < 1e-6


def test_embed_refuses_in_words(lm: cutaway.LanguageModel) -> None:
    assert lm.embed([]).shape == (0, 384)
    with pytest.raises(UserError, match="a list of texts"):
        lm.embed("one")
    with pytest.raises(UserError, match="no pooling 'max'"):
        lm.embed(["a"], "max")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UserError, match="a batch of 0"):
        lm.embed(["a"], batch=0)
    for call in (lm.generate, lm.trace, lambda text: lm.chat([{"role": "user", "content": text}])):
        with pytest.raises(UserError, match="is an encoder: it turns texts into vectors"):
            call("hello")
    with pytest.raises(UserError, match="is an encoder"):
        lm.logits([1])


def test_a_decoder_pools_on_request() -> None:
    lm = cutaway.load(inputs.path("smollm2"), engine="pytorch")
    with pytest.raises(UserError, match="is a decoder"):
        lm.embed(["a"])
    with pytest.raises(UserError, match="text 0 has no token"):
        lm.embed([""], "mean")
    texts = ["The capital of France", "Hello", "A much longer text than the others here, for padding"]
    together = lm.embed(texts, "last")
    with torch.no_grad():
        ids = torch.tensor([lm.ids(texts[0])])
        x = lm.model.norm(lm.model.routed(ids, torch.arange(ids.shape[1])[None])[0])[0, -1]
    assert np.abs(together[0] - (x / x.norm()).numpy()).max() < EXACT


# ---- the family --------------------------------------------------------------------------------------------

IDS = torch.randint(2, 99, (2, 40), generator=torch.Generator().manual_seed(1))
KINDS = (IDS % 3 == 0).long()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor]:
    """A tiny BERT of which no weight is where it starts, and what transformers makes of ``IDS``."""
    config = transformers.BertConfig(
        vocab_size=99,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=50,
    )
    torch.manual_seed(0)
    model = transformers.BertModel(config).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
    folder = tmp_path_factory.mktemp("bert")
    model.save_pretrained(folder)
    return folder, hidden(model)


@torch.no_grad()
def hidden(model: Any) -> torch.Tensor:
    return model(input_ids=IDS, token_type_ids=KINDS).last_hidden_state


@torch.no_grad()
def ours(checkpoint: load.Checkpoint) -> torch.Tensor:
    return build.encoder(checkpoint)(IDS, torch.arange(40).expand(2, 40), KINDS)


def test_bert_in_both_directions(tiny: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    folder, expected = tiny
    checkpoint = load.read_checkpoint(folder)
    assert (ours(checkpoint) - expected).abs().max() < EXACT
    assert save.write_checkpoint(tmp_path / "ours", checkpoint).family == "bert"
    opened, info = transformers.BertModel.from_pretrained(
        tmp_path / "ours", add_pooling_layer=False, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert (hidden(opened.eval()) - expected).abs().max() < EXACT
    assert load.read_checkpoint(tmp_path / "ours").config == checkpoint.config


def test_bert_through_gguf(tiny: tuple[Path, torch.Tensor], tmp_path: Path) -> None:
    checkpoint = load.read_checkpoint(tiny[0])
    save.write_checkpoint(tmp_path / "model.gguf", checkpoint)
    again = load.read_checkpoint(tmp_path / "model.gguf")
    assert again.config == checkpoint.config
    assert torch.equal(ours(again), ours(checkpoint))


@torch.no_grad()
def test_an_encoder_can_be_watched(tiny: tuple[Path, torch.Tensor]) -> None:
    model = build.encoder(load.read_checkpoint(tiny[0]))
    with tracing(model) as seen:
        model(IDS, torch.arange(40).expand(2, 40), KINDS)
    assert torch.allclose(seen["blocks.2.out"], tiny[1], atol=EXACT)
    assert seen["blocks.0.attention.pattern"].shape == (2, 4, 40, 40)
    assert {"embed", "blocks.1.middle", "blocks.1.mlp.hidden", "blocks.1.attention.q"} <= set(seen)


def test_the_config_round_trips_and_knows_every_weight(tiny: tuple[Path, torch.Tensor]) -> None:
    checkpoint = load.read_checkpoint(tiny[0])
    assert from_dict(to_dict(checkpoint.config), Encoder) == checkpoint.config
    named = {name: tuple(w.shape) for name, w in build.encoder(checkpoint).named_parameters()}
    assert checkpoint.config.weights() == named
