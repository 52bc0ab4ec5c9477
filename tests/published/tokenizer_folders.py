"""Published tokenizer folders with a small trained vocabulary, beside the library that they were made for.

An entry of ``tokenizers/`` is what a folder's files say, without the bulk of its vocabulary and merges.
``written`` gives it those of a vocabulary of the same kind, trained here, and renumbers what it names.
"""

from __future__ import annotations

import base64
import copy
import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import tiktoken
import tokenizers
import transformers
from tokenizers import models, pre_tokenizers, trainers

from cutaway.tokenizer.bpe import BYTE_TOKENS, BYTES, unspell

FOLDERS = Path(__file__).parent / "tokenizers"
NAMES = sorted(path.stem for path in FOLDERS.glob("*.json"))
ROLES = [f"{role}_token" for role in ("bos", "eos", "unk", "pad", "cls", "sep", "mask")]
PARTS = ["tokenizer_config.json", "special_tokens_map.json", "config.json", "chat_template.json"]
WORDS = [
    "The quick brown fox's 1234567890 jumps over the lazy dog, doesn't it? I'll say we've seen",
    '12,345.67 of them. def f(x): return {"a": [1, 2]} # naïve café, Grüße aus Köln, señor; été, ÀÉÎ ñ',
    "Привет мир, как дела? 日本語のテキストと中文 한국어 텍스트 العربية",
    "ภาษาไทย हिन्दी Ελληνικά עברית 😀👍🏽 → ∑ ½ ² ①",
    "camelCaseHTTPServer snake_case_name http://a.b/c?d=e the the and and of of to to in in is is",
]
PIECES = [
    *["", "a", " ", "  ", "   a", "a   b", "\n", "\n\n", "\r\n", "\t\tx", "Hello world", *WORDS],
    *[
        "e\u0301 \u0041\u030a",
        "ﬁ ﬂ ½ ²",
        "각각 한국어",
        "👨‍👩‍👧‍👦🏳️‍🌈",
        "a\u200bb\u200d\ufeffc",
        "\u0001\u007f",
    ],
    *["\u00a0\u3000\u2003x", "١٢٣ Ⅷ ①", "ς İI ı ß ẞ", "’s 'S 'LL 're", "\u2028\u2029\u0085", "𝒳𝓎 𐍈"],
    *["▁▁a ▁b", "<0x0A>", "Ġhello", "##ing", "ab" * 30, "1" * 40, " " * 30 + "x", "-" * 30, "\u0378\u2fff"],
    *["a\u0327\U0001605a\u0301", "\ud7ff", "ǅ Ǆ", "…“”—–", "\u1e9b\u0323", "\u20dd a", "DON'T", "\x1c\x1d"],
    *["<s>", "</s>", "<unk>", "[CLS] [SEP]", "<|endoftext|>", "<|im_start|>user", "[UNK]", "<pad> <mask>"],
]


class Folder(NamedTuple):
    """A folder that was written, its judge, and the added tokens."""

    path: Path
    encode: Callable[[str, bool], list[int]]  # a text's ids; the flag: with what goes around it
    decode: Callable[[list[int], bool], str]  # the flag: without control tokens
    pair: Callable[[str, str], list[int]] | None
    added: list[str]


def entry(name: str) -> dict[str, Any]:
    """What a folder's files say."""
    return json.loads((FOLDERS / f"{name}.json").read_text("utf-8"))


def templates() -> dict[str, str]:
    """Chat templates of published folders that llama.cpp does not have, by name."""
    lines = (FOLDERS.parent / "chat_templates.jsonl").read_text("utf-8").splitlines()
    found = {each["name"]: each["template"] for each in map(json.loads, lines)}
    for name in NAMES:
        held = entry(name)
        own = held.get("tokenizer_config.json", {}).get("chat_template") or held.get("chat_template.jinja")
        for part in own if isinstance(own, list) else [{"name": "", "template": own}] if own else []:
            found[f"{name} {part['name']}".strip()] = part["template"]
    return found


def texts(added: list[str], count: int = 110) -> list[str]:
    """Hostile texts, some with added tokens in them."""
    draw = random.Random(0)
    out = list(PIECES)
    for token in draw.sample(added, min(len(added), 10)):
        out += [token, f" {token} ", f"a{token}b", f"{token}\n {token}"]
    pool = [*PIECES, *added[:20]]
    while len(out) < count:
        parts = [draw.choice(pool) + draw.choice(["", " ", "\n", "  "]) for _ in range(draw.randint(1, 6))]
        out.append("".join(parts))
    ranges = [(32, 126), (128, 591), (768, 879), (880, 8191), (8192, 12287), (12288, 55295), (65536, 131071)]
    for _ in range(25):
        codes = [draw.randint(*draw.choice(ranges)) for _ in range(draw.randint(1, 12))]
        out.append("".join(map(chr, codes)))
    return out


@cache
def _trained(kind: str) -> tuple[dict[str, Any], tuple[tuple[str, str], ...]]:
    """A small vocabulary of a kind, token to id or score, and its merges."""
    if kind == "bytes":
        made = tokenizers.Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        trainer = trainers.BpeTrainer(
            vocab_size=600, initial_alphabet=list(BYTES), show_progress=False, special_tokens=[]
        )
    elif kind == "Unigram":
        made = tokenizers.Tokenizer(models.Unigram())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.UnigramTrainer(
            vocab_size=300, unk_token="<unk>", special_tokens=["<unk>"], show_progress=False
        )
    elif kind == "BPE":
        made = tokenizers.Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.Metaspace()
        trainer = trainers.BpeTrainer(vocab_size=500, show_progress=False, special_tokens=[])
    else:
        made = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
        made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer = trainers.WordPieceTrainer(vocab_size=500, show_progress=False, special_tokens=["[UNK]"])
    made.train_from_iterator(WORDS * 3, trainer)
    model = json.loads(made.to_str())["model"]
    vocabulary = dict(map(tuple, model["vocab"])) if kind == "Unigram" else model["vocab"]
    return vocabulary, tuple(map(tuple, model.get("merges", ())))


@cache
def _charsmap() -> str:
    """SentencePiece's nmt_nfkc, which several published folders have."""
    import io

    import sentencepiece

    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["a b c d e f g h"] * 9), model_writer=file, vocab_size=12, minloglevel=2
    )
    from sentencepiece import sentencepiece_model_pb2

    model = sentencepiece_model_pb2.ModelProto.FromString(file.getvalue())
    return base64.b64encode(model.normalizer_spec.precompiled_charsmap).decode()


def written(name: str, folder: Path) -> Folder:
    """A folder's files with a small vocabulary, and the library that judges it."""
    held = copy.deepcopy(entry(name))
    if "tokenizer.json" in held:
        ids, judge = _with_json(held, folder)
    elif "vocab.json" in held["files"]:
        ids, judge = _with_gpt2_files(held, folder)
    else:
        ids, judge = _with_ranks(held, folder)
    if "added_tokens.json" in held:
        extra = {text: ids.setdefault(text, len(ids)) for text in held["added_tokens.json"]}
        (folder / "added_tokens.json").write_text(json.dumps(extra))
    config = held.get("tokenizer_config.json", {})
    listed = {}
    for token in config.get("added_tokens_decoder", {}).values():
        old = held.get("in_place_of", {}).get(token["content"])
        listed[str(ids[old] if old else ids.setdefault(token["content"], len(ids)))] = token
    if listed:
        config["added_tokens_decoder"] = listed
    for part in PARTS:
        if part in held:
            (folder / part).write_text(json.dumps(held[part], ensure_ascii=False))
    if "chat_template.jinja" in held:
        (folder / "chat_template.jinja").write_text(held["chat_template.jinja"])
    return judge()


def _with_json(held: dict[str, Any], folder: Path) -> tuple[dict[str, int], Callable[[], Folder]]:
    whole = held["tokenizer.json"]
    model = whole["model"]
    bytewise = '"ByteLevel"' in json.dumps(whole["pre_tokenizer"])
    sort = model.get("type", "BPE" if "merges" in model else "Unigram")
    kind = "bytes" if bytewise else sort if sort in ("BPE", "Unigram") else "WordPiece"
    vocabulary, merges = _trained(kind)
    front = [*held["in_vocabulary"], *held.get("in_place_of", {}).values()]
    listed = {token["content"] for token in whole["added_tokens"]}
    front += [text for text in _around(whole.get("post_processor")) if text not in listed]
    unknown = model.get("unk_id") if sort == "Unigram" else model.get("unk_token")
    front += [unknown] if isinstance(unknown, str) and unknown not in front else []
    front += [text for text in BYTE_TOKENS if model.get("byte_fallback")]
    order = list(dict.fromkeys([*front, *vocabulary]))
    ids = {text: id for id, text in enumerate(order)}
    if sort == "Unigram":
        model["vocab"] = [[text, vocabulary.get(text, 0.0)] for text in order]
        if isinstance(unknown, str):
            model["unk_id"] = ids[unknown]
    else:
        model["vocab"] = dict(ids)
    if "merges" in model:
        model["merges"] = [list(pair) if model["merges"] == "pairs" else " ".join(pair) for pair in merges]
    for token in whole["added_tokens"]:
        token["id"] = ids.setdefault(token["content"], len(ids))
    _renumber(whole.get("post_processor"), ids)
    text = json.dumps(whole, ensure_ascii=False).replace('"nmt_nfkc"', json.dumps(_charsmap()))
    (folder / "tokenizer.json").write_text(text)

    def judge() -> Folder:
        library = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        sources = [held.get(part, {}) for part in PARTS[:2]]
        named = [source.get(role) for source in sources for role in ROLES]
        roles = [token["content"] if isinstance(token, dict) else token for token in named if token]
        if "tokenizer_config.json" in held:
            _add_listed(library, held["tokenizer_config.json"])
        marked = {token.content for token in library.get_added_tokens_decoder().values() if token.special}
        roles = [token for token in roles if token not in marked and library.token_to_id(token) is not None]
        library.add_special_tokens(roles)
        added = [token.content for token in library.get_added_tokens_decoder().values()]
        return Folder(
            folder,
            lambda text, around: library.encode(text, add_special_tokens=around).ids,
            lambda ids, skip: library.decode(ids, skip_special_tokens=skip),
            (lambda one, other: library.encode(one, other).ids) if whole.get("post_processor") else None,
            added,
        )

    return ids, judge


def _add_listed(library: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
    """The tokens that tokenizer_config.json alone lists, as transformers adds them."""
    known = {token.content for token in library.get_added_tokens_decoder().values()}
    for token in config.get("added_tokens_decoder", {}).values():
        if token["content"] not in known:
            flags = {key: token[key] for key in ("lstrip", "rstrip", "single_word", "normalized", "special")}
            library.add_tokens([tokenizers.AddedToken(token["content"], **flags)])


def _around(part: Any) -> list[str]:
    """The tokens that a post-processor names."""
    out = []
    for one in (part or {}).get("processors", [part] if part else []):
        special = one.get("special_tokens", {}) if one["type"] == "TemplateProcessing" else {}
        out += [text for each in special.values() for text in each["tokens"]]
        out += [one[key][0] for key in ("cls", "sep") if key in one]
    return out


def _renumber(part: Any, ids: dict[str, int]) -> None:
    """The ids that a post-processor names, by their texts."""
    for one in (part or {}).get("processors", [part] if part else []):
        for special in one.get("special_tokens", {}).values() if one["type"] == "TemplateProcessing" else ():
            special["ids"] = [ids[text] for text in special["tokens"]]
        for key in ("cls", "sep"):
            if key in one:
                one[key] = [one[key][0], ids[one[key][0]]]


def _with_gpt2_files(held: dict[str, Any], folder: Path) -> tuple[dict[str, int], Callable[[], Folder]]:
    vocabulary, merges = _trained("bytes")
    ids = {text: id for id, text in enumerate(dict.fromkeys([*held["in_vocabulary"], *vocabulary]))}
    (folder / "vocab.json").write_text(json.dumps(ids))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges), ""]))

    def judge() -> Folder:
        library = transformers.AutoTokenizer.from_pretrained(folder)
        return Folder(
            folder,
            lambda text, around: library.encode(text, add_special_tokens=around),
            lambda ids, skip: library.decode(ids, skip_special_tokens=skip),
            None,
            list(library.get_added_vocab()),
        )

    return ids, judge


PATTERNS = {  # of the code in those folders
    "qwen.tiktoken": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "tiktoken.model": r"[\p{Han}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def _with_ranks(held: dict[str, Any], folder: Path) -> tuple[dict[str, int], Callable[[], Folder]]:
    (file,) = held["files"]
    _, merges = _trained("bytes")
    order = [*BYTES, *(left + right for left, right in merges)]
    ranks = {unspell(text) or b"": rank for rank, text in enumerate(order)}
    lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in ranks.items()]
    (folder / file).write_bytes(b"".join(lines))
    ids = {text: id for id, text in enumerate(order)}

    def judge() -> Folder:
        from cutaway.tokenizer import Tokenizer

        special = Tokenizer.load(folder).special  # their ids are checked by the test
        library = tiktoken.Encoding(
            "small", pat_str=PATTERNS[file], mergeable_ranks=ranks, special_tokens=special
        )
        form = (
            tokenizers.normalizers.NFC() if file == "qwen.tiktoken" else tokenizers.normalizers.Sequence([])
        )
        return Folder(
            folder,
            lambda text, _: library.encode(form.normalize_str(text), allowed_special="all"),
            lambda ids, skip: library.decode([id for id in ids if not (skip and id in special.values())]),
            None,
            list(special),
        )

    return ids, judge
