"""Ids equal to llama.cpp's vectors, tokenizers', tiktoken's and sentencepiece's, on many scripts, noise and
runs.
"""

import base64
import inspect
import json
import random
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import regex
import sentencepiece
import tiktoken
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from cutaway import gguf
from cutaway.errors import UserError
from cutaway.tokenizer import Tokenizer
from cutaway.tokenizer.spec import TokenizerSpec
from tests import inputs, llama_cpp

DECLARATION = """All human beings are born free and equal in dignity and rights.
They're endowed with reason; it's 1948.
Alle Menschen sind frei und gleich an Würde und Rechten geboren.
Tous les êtres humains naissent libres et égaux.
Todos los seres humanos nacen libres e iguales. Všichni lidé se rodí svobodní.
Tất cả mọi người sinh ra đều được tự do.
Все люди рождаются свободными и равными. Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια ΣΑΣ.
人人生而自由,在尊严和权利上一律平等。 すべての人間は、生まれながらにして自由であり、
모든 인간은 태어날 때부터 자유로우며
יולדו כל בני האדם חופשיים ושווים בערכם ובזכויותיהם. يولد جميع الناس أحراراً متساوين في الكرامة والحقوق. ١٢٣٤٥
सभी मनुष्यों को गौरव और अधिकारों के मामले में १२३
ทุกคนเกิดมามีอิสระ მობრწყინვება ყველა ծնվում են ሁሉም ሰዎች ᎠᏂᏴᏫ İIıi ǅ ß ﬁ ½ Ⅷ"""
ODD = """🎉👩‍👩‍👧‍👦🏳️‍🌈e\u0301\u0301 \x00\x01\x1c\x7f\x85\xa0\u200b\u2028\ufeff\u3000
\U000e0041 \t\t x\r\n\r\r\n \n  y   \n\n\n z
'S'll'RE'ſ 12345678 0x1F 3.14
<s>a</s><|im_end|><|endoftext|> <0x41> ▁a▁▁b <unk>[INST] ~~~~ ==== !!!???
http://a.b/c?d=e&f=%20 a_b::c->d snake_caseCamelCase"""


@cache
def texts() -> list[str]:
    """Some 60 kB: prose in many scripts, code, odd characters, noise, long runs, and the shortest texts."""
    code = "".join(inspect.getsource(module) for module in (json.decoder, random))[:6_000]
    noise = random.Random(0)
    known = [
        chr(code) for code in range(32, 0x20000) if unicodedata.category(chr(code)) not in ("Cn", "Cs", "Co")
    ]
    whole = [
        DECLARATION,
        ODD,
        noise.randbytes(800).decode("utf-8", "replace"),
        noise.randbytes(800).decode("latin-1"),
    ]
    whole.append("".join(noise.choices(known, k=500)))
    runs = [mark * size for mark in "a \né字=1\t\r" for size in (1, 2, 3, 7, 33, 300)]
    return ["", *runs, *whole, *[code[i : i + 800] for i in range(0, len(code), 600)]]


def differing(
    ours: Callable[[str], list[int]], theirs: Callable[[str], list[int]], over: list[str] | None = None
) -> list[str]:
    """The texts of which the ids differ."""
    return [text[:60] for text in (texts() if over is None else over) if ours(text) != theirs(text)]


wild = st.text(
    st.one_of(
        st.characters(exclude_categories=["Cs"]),
        st.sampled_from(list(" \n\r\t'sStTrelvmdaéñ日本한👩\u200d▁0159_<|>")),
    ),
    max_size=60,
)
tried = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


LACKING = pytest.mark.filterwarnings("ignore:the vocabulary has no token for byte")  # of rare control bytes

# llama.cpp

_SETS = """bert-bge command-r deepseek-coder deepseek-llm falcon gemma-4 gpt-2 llama-bpe llama-spm mpt phi-3
qwen2 qwen35 refact starcoder"""
SETS = _SETS.split()


@pytest.mark.parametrize("name", SETS)
def test_llama_cpp_vectors(name: str) -> None:
    path = inputs.path("llama-vocab") / f"ggml-vocab-{name}.gguf"
    cases = Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    ids = [[int(word) for word in line.split()] for line in Path(f"{path}.out").read_text().split("\n")]
    tok = Tokenizer.load(path)
    assert len(cases) >= 46
    assert len(ids) >= len(cases)
    wrong = [
        (case, tok.encode(case), expected)
        for case, expected in zip(cases, ids, strict=False)
        if tok.encode(case) != expected
    ]
    assert wrong == []


def _written(tok: Tokenizer, path: Path) -> Callable[[str, bool], list[int]]:
    """llama.cpp's tokenizer over a small model whose metadata we wrote."""
    gguf.write(path, {**_METADATA, **tok.to_gguf()}, _tensors(len(tok)))
    return llama_cpp.tokenizing(path)


_METADATA: dict[str, object] = {
    "general.architecture": "llama",
    "llama.context_length": np.uint32(256),
    "llama.embedding_length": np.uint32(32),
    "llama.block_count": np.uint32(1),
    "llama.feed_forward_length": np.uint32(32),
    "llama.attention.head_count": np.uint32(1),
    "llama.attention.layer_norm_rms_epsilon": np.float32(1e-5),
    "llama.rope.dimension_count": np.uint32(32),
}


def _tensors(vocab: int) -> dict[str, gguf.Packed]:
    shapes = {
        "token_embd": (vocab, 32),
        "output_norm": (32,),
        "blk.0.attn_norm": (32,),
        "blk.0.ffn_norm": (32,),
    }
    shapes |= {f"blk.0.attn_{part}": (32, 32) for part in ("q", "k", "v", "output")}
    shapes |= {f"blk.0.ffn_{part}": (32, 32) for part in ("gate", "up", "down")}
    return {f"{name}.weight": _zeros(shape) for name, shape in shapes.items()}


def _zeros(shape: tuple[int, ...]) -> gguf.Packed:
    return gguf.Packed("F32", shape, np.zeros((*shape[:-1], shape[-1] * 4), np.uint8))


MARKED = [
    "<s>Hello</s> there <|im_start|>user\nhi<|im_end|>\n<|endoftext|> x",
    "</s>",
    "a</s>b <s> c",
    " <s> <s>",
]


@LACKING
@pytest.mark.parametrize("source", ["smollm2", "mistral", "starcoder"])
def test_written_gguf_gives_llama_cpp_the_same_ids(source: str, tmp_path: Path) -> None:
    tok = Tokenizer.load(_source(source))
    theirs = _written(tok, tmp_path / "tiny.gguf")
    over = [*[text for text in texts() if "\0" not in text][::3], DECLARATION]
    assert differing(tok.encode, lambda text: theirs(text, False), [*over, *MARKED]) == []
    assert differing(lambda text: tok.encode(text, "allow"), lambda text: theirs(text, True), MARKED) == []
    again = Tokenizer.load(tmp_path / "tiny.gguf")
    assert differing(again.encode, tok.encode) == []
    assert (again.bos, again.eos, again.add_bos, again.eos_ids) == (
        tok.bos,
        tok.eos,
        tok.add_bos,
        tok.eos_ids,
    )
    assert (again.special, again.added, again.chat_template) == (tok.special, tok.added, tok.chat_template)


def test_written_gguf_of_other_models_gives_llama_cpp_the_same_ids(tmp_path: Path) -> None:
    """Unigram's all. BERT's but for Hangul, which llama.cpp cuts short, and very long words."""
    unigram = Tokenizer.load(inputs.path("sentencepiece-fixtures") / "botchan_en_unigram_1000.model")
    bert = Tokenizer.load(inputs.path("minilm"))
    over = [text for text in texts() if "\0" not in text] + MARKED
    theirs = _written(unigram, tmp_path / "unigram.gguf")
    assert differing(unigram.encode, lambda text: theirs(text, False), over) == []
    for text in MARKED:
        assert unigram.encode(text, "allow") == theirs(text, True)
    theirs = _written(bert, tmp_path / "bert.gguf")
    plain = [text for text in over if not regex.search(r"\p{Hangul}|\w{101}", text)]
    assert len(plain) > len(over) - 8
    assert differing(bert.encode, lambda text: theirs(text, False), plain) == []
    for tok, name in ((unigram, "unigram"), (bert, "bert")):
        again = Tokenizer.load(tmp_path / f"{name}.gguf")
        assert differing(again.encode, tok.encode) == []
        assert again.framed([]) == tok.framed([])
        assert again.special == tok.special


def _source(name: str) -> Path:
    if name == "mistral":
        return next(inputs.path("mistral").rglob("tokenizer.model.v1"))
    if name in ("gpt2", "cl100k_base", "o200k_base"):
        return next(inputs.path("tiktoken").rglob(f"{name}.json"))
    if name == "botchan":
        return next(inputs.path("sentencepiece-fixtures").rglob("botchan_en_bpe_1000.model"))
    if name in SETS:
        return inputs.path("llama-vocab") / f"ggml-vocab-{name}.gguf"
    return inputs.path(name)


@cache
def loaded(name: str) -> Tokenizer:
    return Tokenizer.load(_source(name))


# tiktoken


@cache
def openai(name: str) -> tuple[tiktoken.Encoding, dict[bytes, int]]:
    whole = json.loads(_source(name).read_text())
    lines = [line.split(" ") for line in whole["bpe_ranks"].split("\n") if line]
    ranks = {base64.b64decode(word): int(line[1]) + i for line in lines for i, word in enumerate(line[2:])}
    return tiktoken.Encoding(
        name, pat_str=whole["pat_str"], mergeable_ranks=ranks, special_tokens=whole["special_tokens"]
    ), ranks


@pytest.mark.parametrize("name", ["gpt2", "cl100k_base", "o200k_base"])
def test_tiktoken(name: str) -> None:
    theirs, _ = openai(name)
    tok = loaded(name)
    assert differing(tok.encode, theirs.encode_ordinary) == []
    assert (
        differing(
            lambda text: tok.encode(text, "allow"), lambda text: theirs.encode(text, allowed_special="all")
        )
        == []
    )
    ids = random.Random(0).choices(range(len(tok)), k=2000)
    known = [id for id in ids if tok.spec.tokens[id] is not None]
    assert tok.decode_bytes(known) == theirs.decode_bytes(known)


@tried
@given(wild)
def test_tiktoken_on_any_text(text: str) -> None:
    for name in ("gpt2", "cl100k_base"):
        assert loaded(name).encode(text) == openai(name)[0].encode_ordinary(text)


def test_rank_file(tmp_path: Path) -> None:
    theirs, ranks = openai("cl100k_base")
    path = tmp_path / "cl100k_base.tiktoken"
    path.write_bytes(b"".join(base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()))
    tok = Tokenizer.load(path, pattern="cl100k", special={"<|endoftext|>": 100257})
    assert differing(tok.encode, theirs.encode_ordinary) == []
    assert tok.encode("a<|endoftext|>", "allow")[-1] == 100257
    assert (tok.eos, tok.eos_ids, tok.is_special(100257)) == (100257, (100257,), True)


@LACKING
@pytest.mark.parametrize("name", ["gpt2", "cl100k_base", "gpt-2"])
def test_a_written_rank_file_gives_tiktoken_the_same_ids(name: str, tmp_path: Path) -> None:
    """From ranks, and from merges that ranks agree with (GPT-2's in llama.cpp's file)."""
    tok = loaded(name)
    lines = tok.save(tmp_path / "again.tiktoken").read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines)}
    pattern = tok.spec.pretokenizer[0].pattern  # pyright: ignore[reportAttributeAccessIssue]
    theirs = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=tok.special)
    assert differing(tok.encode, theirs.encode_ordinary) == []
    assert differing(tok.encode, openai("gpt2" if name == "gpt-2" else name)[0].encode_ordinary) == []
    again = Tokenizer.load(tmp_path / "again.tiktoken", pattern=pattern, special=tok.special)
    assert differing(again.encode, tok.encode) == []
    assert again.special == tok.special


def test_ranks_that_would_merge_otherwise_are_not_written(tmp_path: Path) -> None:
    """The merges make "abc" of "a" and "bc"; ranks would make it of "ab" and "c"."""
    tokens = [*"abc", "ab", "bc", "abc"]
    merges = [("a", "b"), ("b", "c"), ("a", "bc")]
    parts = TokenizerSpec(
        tokens=tokens, vocabulary={text: id for id, text in enumerate(tokens)}, merges=merges
    )
    with pytest.raises(UserError, match="of other parts"):
        Tokenizer(parts).save(tmp_path / "x.tiktoken")
    with pytest.raises(UserError, match="another order"):
        Tokenizer(replace(parts, merges=merges[:2])).save(tmp_path / "x.tiktoken")
    with pytest.raises(UserError, match="cut by more than one pattern"):
        loaded("smollm2").save(tmp_path / "x.tiktoken")


# Naughty strings


@cache
def naughty() -> list[str]:
    found = json.loads(inputs.path("naughty-strings").read_text())
    assert len(found) > 480
    return found


def test_naughty_strings_on_every_judge() -> None:
    """Under Unicode's versions of the judges; control tokens that they spell stay text."""
    for name in ("gpt2", "cl100k_base", "o200k_base"):
        assert differing(loaded(name).encode, openai(name)[0].encode_ordinary, naughty()) == []
    for name in ("mistral", "botchan"):
        assert differing(loaded(name).encode, _processor(name).encode, naughty()) == []
    assert differing(loaded("deepseek").encode, _deepseek(), naughty()) == []
    bert = inputs.path("minilm") / "tokenizer.json"
    assert differing(Tokenizer.load(bert).encode, hugging_face(bert), naughty()) == []
    for unigram in ("botchan_en_unigram_1000", "kyoto_ja_unigram_8000"):
        path = inputs.path("sentencepiece-fixtures") / f"{unigram}.model"
        theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
        assert differing(Tokenizer.load(path).encode, theirs.encode, naughty()) == []


# sentencepiece


@pytest.mark.parametrize("name", ["mistral", "botchan"])
def test_sentencepiece(name: str) -> None:
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(_source(name)))
    tok = loaded(name)
    assert differing(tok.encode, theirs.encode) == []
    for text in texts():
        ids = theirs.encode(text)
        assert tok.decode(ids) == theirs.decode(ids)
    assert (tok.bos, tok.eos, tok.unknown, len(tok)) == (
        theirs.bos_id(),
        theirs.eos_id(),
        theirs.unk_id(),
        theirs.vocab_size(),
    )


@tried
@given(wild)
def test_sentencepiece_on_any_text(text: str) -> None:
    for name in ("mistral", "botchan"):
        assert loaded(name).encode(text) == _processor(name).encode(text)


@cache
def _processor(name: str) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_file=str(_source(name)))


@pytest.mark.parametrize(
    "options",
    [
        {"user_defined_symbols": "<sep>,<mask>,é字"},
        {
            "user_defined_symbols": "<sep>",
            "normalization_rule_name": "identity",
            "remove_extra_whitespaces": False,
        },
        {
            "byte_fallback": True,
            "add_dummy_prefix": False,
            "split_by_whitespace": False,
            "control_symbols": "<ctl>",
        },
        {
            "byte_fallback": True,
            "normalization_rule_name": "nmt_nfkc_cf",
            "split_digits": True,
            "vocab_size": 700,
        },
    ],
)
def test_sentencepiece_models_of_other_settings(options: dict[str, object], tmp_path: Path) -> None:
    lines = (DECLARATION * 3 + ODD.replace("\0", "")).split("\n") + inspect.getsource(random).split("\n")
    common = {"vocab_size": 600, "model_type": "bpe", "character_coverage": 0.98, "minloglevel": 5}
    train: Callable[..., None] = sentencepiece.SentencePieceTrainer.train
    train(sentence_iterator=iter(lines), model_prefix=str(tmp_path / "m"), **common | options)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    tok = Tokenizer.load(tmp_path / "m.model")
    extra = ["<sep>a", " <sep> a <sep>", "a<sep>b<mask> ", "é字 é字x", "<ctl>a", "  a   b  ", "   "]
    assert differing(tok.encode, theirs.encode, texts() + extra) == []
    for text in texts() + extra:
        ids = theirs.encode(text)
        assert tok.decode(ids, skip_special=False) == theirs.decode(ids)


# tokenizers


def hugging_face(path: Path, allow: bool = False) -> Callable[[str], list[int]]:
    theirs = tokenizers.Tokenizer.from_file(str(path))
    theirs.encode_special_tokens = not allow
    theirs.no_padding()
    theirs.no_truncation()
    return lambda text: theirs.encode(text, add_special_tokens=False).ids


def test_tokenizer_json_of_deepseek() -> None:
    tok, path = loaded("deepseek"), _source("deepseek")
    assert differing(tok.encode, hugging_face(path)) == []
    marked = ["<｜User｜>hi<｜end▁of▁sentence｜> x<think>y", *MARKED]
    assert differing(lambda text: tok.encode(text, "allow"), hugging_face(path, allow=True), marked) == []
    theirs = tokenizers.Tokenizer.from_file(str(path))
    for text in texts()[::4]:
        assert tok.decode(tok.encode(text)) == theirs.decode(tok.encode(text), skip_special_tokens=False)


@LACKING
@pytest.mark.parametrize("name", ["smollm2", "mistral", "gpt2", "phi-3", "falcon", "deepseek-coder"])
def test_written_tokenizer_json_gives_tokenizers_the_same_ids(name: str, tmp_path: Path) -> None:
    tok = loaded(name)
    path = tok.save(tmp_path)
    assert path == tmp_path / "tokenizer.json"
    assert differing(tok.encode, hugging_face(path)) == []
    assert (
        differing(lambda text: tok.encode(text, "allow"), hugging_face(path, allow=True), [*MARKED, ODD])
        == []
    )
    again = Tokenizer.load(path)
    assert differing(again.encode, tok.encode) == []
    theirs = tokenizers.Tokenizer.from_file(str(path))
    for text in texts()[::5] if name != "deepseek-coder" else []:  # they decode its added tokens (ü) as bytes
        ids = tok.encode(text)
        assert tok.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
    whole = theirs.encode("Hello", add_special_tokens=True).ids
    assert whole == [tok.bos] * tok.add_bos + tok.encode("Hello") + [tok.eos] * tok.add_eos


@cache
def _small() -> dict[str, str]:
    """Two small vocabularies, trained by tokenizers: over bytes, and over characters with byte tokens."""
    lines = [DECLARATION, inspect.getsource(random)[:20_000]]
    bytewise = tokenizers.Tokenizer(models.BPE())
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)  # pyright: ignore
    bytewise.train_from_iterator(lines, trainer)
    characters = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    characters.normalizer = normalizers.Replace(" ", "▁")
    special = ["<unk>", *[f"<0x{byte:02X}>" for byte in range(256)]]
    trainer = tokenizers.trainers.BpeTrainer(  # pyright: ignore[reportAttributeAccessIssue]
        vocab_size=900, special_tokens=special, show_progress=False, limit_alphabet=150
    )
    characters.train_from_iterator([line.replace(" ", " ") for line in lines], trainer)
    return {"bytes": bytewise.to_str(), "characters": characters.to_str()}


def small(kind: str) -> tokenizers.Tokenizer:
    made = json.loads(_small()[kind])
    made["added_tokens"], made["normalizer"] = [], None
    return tokenizers.Tokenizer.from_str(json.dumps(made))


P, N = pre_tokenizers, normalizers
BYTES = P.ByteLevel(add_prefix_space=False, use_regex=False)
SPLITS = {
    "plain": P.ByteLevel(add_prefix_space=False),
    "prefix": P.ByteLevel(add_prefix_space=True),
    "nothing": BYTES,
    "digits": P.Sequence([P.Digits(individual_digits=True), P.ByteLevel(add_prefix_space=False)]),
    "numbers": P.Sequence([P.Digits(individual_digits=False), BYTES]),
    "whitespace": P.Sequence([P.Whitespace(), BYTES]),
    "words": P.Sequence([P.WhitespaceSplit(), P.ByteLevel(add_prefix_space=True, use_regex=False)]),
    "punctuation": P.Sequence([P.Punctuation("merged_with_previous"), BYTES]),
    "contiguous": P.Sequence([P.Punctuation("contiguous"), BYTES]),
    **{
        f"split-{behaviour}-{invert}": P.Sequence(
            [P.Split(tokenizers.Regex(r"\d{1,2}|[a-c]+|\s"), behaviour, invert), BYTES]
        )
        for behaviour in ("isolated", "removed", "merged_with_previous", "merged_with_next", "contiguous")
        for invert in (False, True)
    },
    "string": P.Sequence([P.Split("an", "isolated"), P.Split(".", "merged_with_next"), BYTES]),
}
FORMS = {
    "nfc": N.NFC(),
    "nfd-lower": N.Sequence([N.NFD(), N.Lowercase()]),
    "nfkc-strip": N.Sequence([N.NFKC(), N.Strip()]),
    "nfkd-left": N.Sequence([N.NFKD(), N.Strip(right=False)]),
    "replace": N.Sequence([N.Replace("a", "bb"), N.Replace(tokenizers.Regex(r"\s+|é"), "-$0\\1")]),
    "prepend": N.Prepend("x "),
}


def added() -> list[tokenizers.AddedToken]:
    A = tokenizers.AddedToken
    return [
        A("<s>", special=True, normalized=False),
        A("</s>", special=True, normalized=False, rstrip=True),
        A("<|im_end|>", special=True, normalized=False, lstrip=True, rstrip=True),
        A("[INST]", special=False, normalized=False, lstrip=True),
        A("Menschen", special=False, normalized=True),
        A("an", special=False, normalized=False, single_word=True),
        A("Éx", special=False, normalized=True, single_word=True),
    ]


EXTRA = [
    "x <s> y </s>   z",
    "a   <|im_end|>\t\nb",
    "an and an, ban an",
    " Éx éx ÉxÉx e\u0301x Menschen menschen  [INST] ",
    "      a  ",
]
RUNS = [tokenizers.AddedToken(" " * size, special=False, normalized=False) for size in (2, 4, 7)]


def compare(theirs: tokenizers.Tokenizer, folder: Path) -> None:
    """Ids with and without control tokens, decoded text, the file written again."""
    theirs.save(str(folder / "theirs.json"))
    tok = Tokenizer.load(folder / "theirs.json")
    over = texts() + EXTRA + MARKED
    path = folder / "theirs.json"
    assert differing(tok.encode, hugging_face(path), over) == []
    assert differing(lambda text: tok.encode(text, "allow"), hugging_face(path, allow=True), over) == []
    # They decode an added token as its normalised text, or as bytes where its letters spell some; we as
    # itself.
    odd = {tok.id_of("Éx"), tok.id_of("Menschen")}
    for text in over:
        ids = hugging_face(path, allow=True)(text)
        if odd & set(ids):
            continue
        assert tok.decode(ids) == theirs.decode(ids, skip_special_tokens=False)
        assert tok.decode(ids, skip_special=True) == theirs.decode(ids, skip_special_tokens=True)
    again = tok.save(folder / "again.json")
    assert differing(lambda text: tok.encode(text, "allow"), hugging_face(again, allow=True), over[::3]) == []


@pytest.mark.parametrize("split", SPLITS)
def test_pretokenizers(split: str, tmp_path: Path) -> None:
    theirs = small("bytes")
    theirs.pre_tokenizer, theirs.decoder = SPLITS[split], decoders.ByteLevel()
    theirs.add_tokens(added())
    compare(theirs, tmp_path)


def test_runs_of_spaces_as_added_tokens(tmp_path: Path) -> None:
    theirs = small("bytes")
    theirs.pre_tokenizer, theirs.decoder = SPLITS["plain"], decoders.ByteLevel()
    theirs.add_tokens([*RUNS, tokenizers.AddedToken("<s>", special=True)])
    compare(theirs, tmp_path)


@pytest.mark.parametrize("form", FORMS)
def test_normalizers(form: str, tmp_path: Path) -> None:
    theirs = small("bytes")
    theirs.normalizer, theirs.pre_tokenizer, theirs.decoder = (
        FORMS[form],
        SPLITS["plain"],
        decoders.ByteLevel(),
    )
    theirs.add_tokens(added())
    compare(theirs, tmp_path)


SPACES = decoders.Replace("▁", " ")
WAYS = {
    "llama": (
        N.Sequence([N.Prepend("▁"), N.Replace(" ", "▁")]),
        None,
        decoders.Sequence([SPACES, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]),
    ),
    "gemma": (
        N.Replace(" ", "▁"),
        None,
        decoders.Sequence([SPACES, decoders.ByteFallback(), decoders.Fuse()]),
    ),
    "first": (
        None,
        P.Metaspace(prepend_scheme="first", split=False),
        decoders.Sequence([SPACES, decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]),
    ),
    "metaspace": (None, P.Metaspace(), decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])),
    "never": (
        None,
        P.Metaspace(prepend_scheme="never"),
        decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="never")]),
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_characters_with_byte_tokens(way: str, tmp_path: Path) -> None:
    theirs = small("characters")
    normalizer, splitter, theirs.decoder = WAYS[way]
    if normalizer is not None:
        theirs.normalizer = normalizer
    if splitter is not None:
        theirs.pre_tokenizer = splitter
    theirs.add_tokens(added())
    compare(theirs, tmp_path)


def test_template_processing_says_what_goes_around_a_text(tmp_path: Path) -> None:
    theirs = small("bytes")
    theirs.pre_tokenizer, theirs.decoder = SPLITS["plain"], decoders.ByteLevel()
    theirs.add_tokens(added())
    begin, end = theirs.token_to_id("<s>"), theirs.token_to_id("</s>")
    theirs.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=[("<s>", begin), ("</s>", end)]
    )
    theirs.save(str(tmp_path / "t.json"))
    tok = Tokenizer.load(tmp_path / "t.json")
    assert (tok.bos, tok.eos, tok.add_bos, tok.add_eos) == (begin, end, True, True)
    assert theirs.encode("Hello").ids == [tok.bos, *tok.encode("Hello"), tok.eos]
    again = Tokenizer.load(tok.save(tmp_path / "again.json"))
    assert (again.bos, again.eos, again.add_bos, again.add_eos) == (begin, end, True, True)


@tried
@given(wild)
def test_tokenizers_on_any_text(text: str) -> None:
    tok, theirs = loaded("deepseek"), _deepseek()
    if any(_differ(character) for character in text):  # Unicode 17 in `regex`, another version there
        return
    assert tok.encode(text) == theirs(text)


@cache
def _deepseek() -> Callable[[str], list[int]]:
    return hugging_face(_source("deepseek"))


@cache
def _differ(character: str) -> bool:
    """Whether this character is not yet known to the older tables of tokenizers."""
    return unicodedata.category(character) == "Cn"
