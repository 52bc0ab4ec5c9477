"""Classifiers against transformers: every kind of head, on encoders and decoders, of texts and of pairs."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cutaway
from cutaway.errors import UserError
from cutaway.weights import load, save
from tests.parity import tiny_encoders
from tests.parity.test_encoders import CASES as ENCODERS
from tests.parity.tiny import VOCAB, perturbed, transformers

PAD = 5
DECODER = {"vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
DECODER |= {
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
}
GPT2 = {"vocab_size": VOCAB, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "pad_token_id": PAD}
GPT2 |= {"bos_token_id": 0, "eos_token_id": 0}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{
        name: ENCODERS[f"{name}-1"]
        for name in (
            *("roberta", "distilbert", "modernbert", "electra", "albert", "mpnet", "data2vec_text", "esm"),
            *("xlm_roberta_xl", "roberta_prelayernorm", "ernie", "megatron_bert", "rembert", "roformer"),
            *("nomic_bert", "gte", "jina_embeddings_v3", "eurobert", "deberta", "deberta_v2", "squeezebert"),
        )
    },
    "bert": ("BertConfig", tiny_encoders.BERT),
    "modernbert-mean": (
        "ModernBertConfig",
        ENCODERS["modernbert-1"][1]
        | {"classifier_pooling": "mean", "classifier_bias": True, "norm_bias": True}
        | {"classifier_activation": "relu", "norm_eps": 1e-3},
    ),
    "eurobert-mean": ("EuroBertConfig", ENCODERS["eurobert-1"][1] | {"classifier_pooling": "mean"}),
    "deberta-silu": ("DebertaConfig", ENCODERS["deberta-1"][1] | {"pooler_hidden_act": "tanh"}),
    "llama": ("LlamaConfig", DECODER),
    "qwen2": ("Qwen2Config", DECODER | {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3Config", DECODER | {"head_dim": 8}),
    "gemma2": ("Gemma2Config", DECODER | {"head_dim": 8, "query_pre_attn_scalar": 8, "sliding_window": 4}),
    "phi": ("PhiConfig", {**DECODER, "num_key_value_heads": 4}),
    "gpt2": ("GPT2Config", GPT2),
}
ROWS = [[9, 8, 7, 11, 30], [12, 13, 14], [21, 4, 22, 23, 9, 10, 11, 12], [17, PAD, 18, PAD, PAD]]


@lru_cache(maxsize=1)
def made(case: str, labels: int = 3) -> Any:
    name, own = CASES[case]
    return perturbed(transformers.AutoModelForSequenceClassification, name, own | {"num_labels": labels})


@torch.no_grad()
def theirs(model: Any, rows: list[list[int]]) -> np.ndarray:
    """Transformers' logits of each row by itself."""
    return np.stack([model(torch.tensor([row])).logits[0].numpy() for row in rows])


@pytest.mark.parametrize("case", CASES)
def test_logits_are_transformers_and_the_head_is_kept(case: str, tmp_path: Path) -> None:
    model = made(case)
    model.save_pretrained(tmp_path / "model")
    lm = cutaway.load(tmp_path / "model")
    rows = ROWS if case not in ("roberta", "esm", "data2vec_text", "xlm_roberta_xl") else ROWS[:3]
    expected = theirs(model, rows)
    found = lm.classify(rows)
    assert found.labels == ("LABEL_0", "LABEL_1", "LABEL_2") and np.ptp(expected, axis=0).min() > 1e-3
    assert np.abs(found.logits - expected).max() < 1e-5
    exact = torch.from_numpy(expected).softmax(-1).numpy()
    assert np.abs(found.scores - exact).max() < 1e-5
    assert found.best == [found.labels[n] for n in expected.argmax(1)]
    save.write_checkpoint(tmp_path / "again", load.read_checkpoint(tmp_path / "model"))
    opened, info = type(model).from_pretrained(
        tmp_path / "again", attn_implementation="eager", output_loading_info=True
    )
    missing = [key for key in info["missing_keys"] if "inv_freq" not in key and "embed_positions" not in key]
    assert not info["unexpected_keys"] and all("contact" in key or "pooler" in key for key in missing)
    assert np.abs(theirs(opened.eval(), rows) - expected).max() < 1e-5
    assert np.abs(cutaway.load(tmp_path / "again").classify(rows).logits - expected).max() < 1e-5


@torch.no_grad()
@pytest.mark.parametrize(
    "case", ["bert", "roberta", "modernbert-mean", "eurobert", "deberta_v2", "distilbert", "qwen2"]
)
def test_labels_of_tokens_are_transformers(case: str, tmp_path: Path) -> None:
    name, own = CASES[case]
    model = perturbed(transformers.AutoModelForTokenClassification, name, own | {"num_labels": 4})
    model.save_pretrained(tmp_path)
    lm = cutaway.load(tmp_path)
    for row, (ids, found) in zip(ROWS[:3], lm.classify_tokens(ROWS[:3]), strict=True):
        expected = model(torch.tensor([row])).logits[0].numpy()
        assert ids == row and np.abs(found.logits - expected).max() < 1e-5
        assert found.best == [f"LABEL_{n}" for n in expected.argmax(1)]
    with pytest.raises(UserError, match="no classifier of texts"):
        lm.classify(ROWS)


def test_a_decoder_with_labels_writes_no_text_and_no_gguf(tmp_path: Path) -> None:
    made("llama").save_pretrained(tmp_path / "model")
    lm = cutaway.load(tmp_path / "model")
    with pytest.raises(UserError, match="is a LlamaForSequenceClassification: it gives texts labels"):
        lm.generate([3, 4])
    with pytest.raises(UserError, match="has no head that scores tokens"):
        save.write_checkpoint(tmp_path / "model.gguf", lm.checkpoint)


WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "b",
    "c",
    "##a",
    "##b",
    "##c",
    "the",
    "cat",
    "sat",
]
TEXTS = ("the cat", "the cat sat", "a cab")
PAIRS = [("the cat sat", "the cab"), ("a", "a b c the cat sat"), ("the the", "cat")]


def worded(folder: Path, kind: str, segments: bool) -> Any:
    """A tokenizer of transformers beside a model, as its folders have it."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    if kind == "bert":
        (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
        made = transformers.BertTokenizerFast(vocab_file=str(folder / "vocab.txt"), do_lower_case=True)
    elif kind == "roberta":
        letters = ["<s>", "<pad>", "</s>", "<unk>", *"abcdefhstu", "\u0120", "\u0120c", "\u0120t"]
        tokenizer = Tokenizer(
            models.BPE({one: n for n, one in enumerate(letters)}, [("\u0120", "c"), ("\u0120", "t")])
        )
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.post_processor = processors.RobertaProcessing(
            ("</s>", 2), ("<s>", 0), add_prefix_space=False
        )
        tokenizer.add_special_tokens(letters[:4])
        made = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")
    else:
        pieces = [
            "<s>",
            "<pad>",
            "</s>",
            "<unk>",
            "\u2581",
            *"abcehst",
            "\u2581the",
            "\u2581c",
            "[CLS]",
            "[SEP]",
        ]
        tokenizer = Tokenizer(models.Unigram([(one, -float(n)) for n, one in enumerate(pieces)], 3, False))
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
        marks = [(one, pieces.index(one)) for one in ("[CLS]", "[SEP]")]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS]:0 $A:0 [SEP]:0", pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1", special_tokens=marks
        )
        tokenizer.add_special_tokens([*pieces[:4], "[CLS]", "[SEP]"])
        made = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>")
    made.save_pretrained(folder)
    if segments:
        path = folder / "tokenizer_config.json"
        names = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
        path.write_text(json.dumps(json.loads(path.read_text()) | names))
    return transformers.AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
@pytest.mark.parametrize(
    ("kind", "case", "more"),
    [
        ("bert", "bert", {}),
        ("bert", "electra", {"problem_type": "multi_label_classification"}),
        ("roberta", "roberta", {}),
        ("unigram", "albert", {}),
        ("unigram", "deberta_v2", {"type_vocab_size": 2}),
        ("bert", "distilbert", {"max_position_embeddings": 64}),
        ("bert", "ernie", {"problem_type": "regression"}),
    ],
)
def test_texts_and_pairs_are_read_as_transformers_reads_them(
    kind: str, case: str, more: dict[str, Any], tmp_path: Path
) -> None:
    """Templates, segments and the numbers' meaning, as transformers' tokenizers and pipelines give them."""
    name, own = CASES[case]
    labels = {"id2label": {0: "no", 1: "yes", 2: "maybe"}, "label2id": {"no": 0, "yes": 1, "maybe": 2}}
    model = perturbed(transformers.AutoModelForSequenceClassification, name, own | labels | more)
    model.save_pretrained(tmp_path)
    tokenizer = worded(tmp_path, kind, case == "deberta_v2")
    lm = cutaway.load(tmp_path)
    for texts in (TEXTS, PAIRS):
        found = lm.classify(texts)
        assert found.labels == ("no", "yes", "maybe")
        for n, text in enumerate(texts):
            given = tokenizer(*([text] if isinstance(text, str) else text), return_tensors="pt")
            ids, parts = lm.inputs.rows([text])
            assert ids[0] == given["input_ids"][0].tolist()
            if case == "distilbert":
                del given["token_type_ids"]  # which it has no table for
            assert (parts is not None) is ("token_type_ids" in given)
            if parts is not None:
                assert parts[0] == given["token_type_ids"][0].tolist()
            expected = model(**given).logits[0]
            assert np.abs(found.logits[n] - expected.numpy()).max() < 1e-5
            law = {"multi_label_classification": expected.sigmoid(), "regression": expected}
            scores = law.get(more.get("problem_type", ""), expected.softmax(-1))
            assert np.abs(found.scores[n] - scores.numpy()).max() < 1e-5
    long = [("cat " * 70, "the cat")]
    with pytest.raises(UserError, match="pair 0 have"):
        lm.classify(long)
    given = tokenizer(*long[0], truncation="longest_first", max_length=lm.context, return_tensors="pt")
    assert np.abs(lm.classify(long, truncate=True).logits - model(**given).logits.numpy()).max() < 1e-5
