"""GGUF metadata (`tokenizer.ggml.*`) to a tokenizer and back, with llama.cpp's meaning of every field.

The specification is ggml's gguf.md; kinds of tokens: 1 normal, 2 unknown, 3 control, 4 user-defined, 5
unused, 6 byte. What is written gives the same ids in llama.cpp.
"""

import io
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cutaway import gguf
from cutaway.errors import UserError, quoted
from cutaway.tokenizer import pretokenize, sentencepiece, template
from cutaway.tokenizer.added import AddedToken
from cutaway.tokenizer.bpe import BYTE_TOKENS, Pair
from cutaway.tokenizer.charsmap import Charsmap
from cutaway.tokenizer.decode import KEEP, ONE, Lead, Words
from cutaway.tokenizer.formats.fields import limited
from cutaway.tokenizer.formats.merges import all_splits, checked
from cutaway.tokenizer.normalize import OneSpace, Prefix, Prepend, Replace, ReplaceMatches, Rule, Unicode
from cutaway.tokenizer.pretokenize import SPACE, Split
from cutaway.tokenizer.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER
from cutaway.tokenizer.spec import TokenizerSpec
from cutaway.tokenizer.unigram import LONGEST_PIECE, PENALTY
from cutaway.tokenizer.wordpiece import CONTINUES, BertNormalizer, BertPreTokenizer

K = "tokenizer.ggml."
# Unigram's spaces, in every stretch between special tokens.
SQUEEZED = (ReplaceMatches(" {2,}", " "), ReplaceMatches(r"\A | \Z", ""))


def read(metadata: Mapping[str, Any]) -> TokenizerSpec:
    """The spec of the tokenizer in a GGUF file's metadata.

    Raises UserError for what is not supported, by name.
    """
    model = _typed(metadata, "model", str, None)
    # How each is read, and whether it has BOS and EOS where the file does not say.
    readers = {
        "gpt2": (_bytewise, _typed(metadata, "pre", str, "default") in pretokenize.BEGINS, False),
        "llama": (_scored, True, False),
        "gemma4": (_characters, True, False),
        "bert": (_wordpiece, True, True),
        "t5": (_unigram, False, True),
    }
    if model is None:
        raise UserError("this GGUF file has no tokenizer (no tokenizer.ggml.model)")
    if model not in readers:
        raise UserError(
            f"the GGUF tokenizer model {quoted(model)} is not supported; {', '.join(readers)} are"
        )
    metadata = _without_padding(metadata)
    tokens = _tokens(metadata)
    kinds = _reclassified(tokens, _numbers(metadata, "token_type", len(tokens), NORMAL))
    common: dict[str, Any] = {
        "tokens": tokens,
        "vocabulary": _vocabulary(tokens),
        "added": _added(tokens, kinds),
        "unused": frozenset(id for id, kind in enumerate(kinds) if kind == UNUSED),
        "verbatim": True,
        "chat_template": _text(metadata, "tokenizer.chat_template"),
        **{field: _id(metadata, key, len(tokens)) for field, key in IDS.items()},
        "eot": tuple(id for key in ("eot", "eom") if (id := _id(metadata, key, len(tokens))) is not None),
    }
    read, begins, ends = readers[model]
    common["add_bos"] = _typed(metadata, "add_bos_token", bool, begins)
    common["add_eos"] = _typed(metadata, "add_eos_token", bool, ends)
    return read(metadata, common if model != "t5" else common | {"kinds": kinds})


SEPARATOR = ("seperator", "separator", "eos")  # the first as the specification spells it
IDS = {"bos": "bos", "eos": "eos", "pad": "padding", "unknown": "unknown", "mask": "mask"}


def _bytewise(metadata: Mapping[str, Any], common: dict[str, Any]) -> TokenizerSpec:
    pre = _typed(metadata, "pre", str, "default")
    return TokenizerSpec(
        **common,
        merges=checked(_merges(metadata), common["vocabulary"], "the GGUF file"),
        pretokenizer=pretokenize.named(pre),
        pre=pre,
        whole=pre in pretokenize.WHOLE,
    )


def _characters(metadata: Mapping[str, Any], common: dict[str, Any]) -> TokenizerSpec:
    """Gemma 4: merges over characters, a space written as U+2581."""
    return TokenizerSpec(
        **common,
        merges=checked(_merges(metadata), common["vocabulary"], "the GGUF file"),
        bytewise=False,
        fallback=True,
        normalizer=(Replace(" ", pretokenize.SPACE),),
        pretokenizer=pretokenize.named("gemma4"),
        pre="gemma4",
    )


def _scored(metadata: Mapping[str, Any], common: dict[str, Any]) -> TokenizerSpec:
    """SentencePiece's BPE, in llama.cpp's form: every stretch between special tokens begins with a space."""
    tokens = common["tokens"]
    prefix = _typed(metadata, "add_space_prefix", bool, True)
    escape = Replace(" ", pretokenize.SPACE)
    scores = [float(score) for score in _numbers(metadata, "scores", len(tokens), 0.0)]
    return TokenizerSpec(
        **common,
        ranks=sentencepiece.ranks(tokens, scores),
        scores=scores,
        bytewise=False,
        fallback=True,
        normalizer=(Prepend(pretokenize.SPACE), escape) if prefix else (escape,),
        lead=Lead(ONE if prefix else KEEP),
    )


def _wordpiece(metadata: Mapping[str, Any], common: dict[str, Any]) -> TokenizerSpec:
    """BERT: tokens that begin a word are written with U+2581 in front, those that go on without."""
    tokens = [_wordpiece_spelling(token) for token in common["tokens"]]
    if common["unknown"] is None:
        raise UserError("the GGUF file's tokenizer is a bert, and names no unknown token")
    size = len(tokens)
    begin, end = (_first_id(metadata, keys, size) for keys in (("cls", "bos"), SEPARATOR))
    vocabulary = _vocabulary(tokens)
    common |= {"tokens": tokens, "vocabulary": vocabulary, "bos": begin, "eos": end}
    common["add_bos"] &= begin is not None
    common["add_eos"] &= end is not None
    return TokenizerSpec(
        **common,
        model="WordPiece",
        bytewise=False,
        normalizer=(BertNormalizer(),),
        pretokenizer=(BertPreTokenizer(),),
        words=Words(CONTINUES, cleanup=True),
        template=_around_pairs(common, template.bert),
    )


def _around_pairs(
    common: Mapping[str, Any], of: Callable[[int, int], template.PairTemplate]
) -> template.PairTemplate | None:
    """The template of a kind of tokenizer, where a text gets both marks."""
    return of(common["bos"], common["eos"]) if common["add_bos"] and common["add_eos"] else None


def _wordpiece_spelling(token: str) -> str:
    if token.startswith(SPACE):
        return token[1:]
    return token if token.startswith("[") and token.endswith("]") else CONTINUES + token


def _unigram(metadata: Mapping[str, Any], common: dict[str, Any]) -> TokenizerSpec:
    """SentencePiece's Unigram in llama.cpp's form: each stretch between special tokens by itself."""
    tokens, kinds = common["tokens"], common.pop("kinds")
    scores = np.asarray(_numbers(metadata, "scores", len(tokens), 0.0), np.float32).tolist()
    if max(map(len, tokens)) > LONGEST_PIECE:
        raise UserError(f"the GGUF file holds a piece of over {LONGEST_PIECE:,} characters, the limit")
    prefix = _typed(metadata, "add_space_prefix", bool, True)
    squeeze = _typed(metadata, "remove_extra_whitespaces", bool, True)
    rules: list[Rule] = []
    charsmap = _bytes(metadata, "precompiled_charsmap")
    kept = tuple(text for text, kind in zip(tokens, kinds, strict=True) if kind == USER)
    rules += [Charsmap(charsmap, kept).checked()] if charsmap else []
    rules += SQUEEZED if squeeze else []
    rules += [Prepend(SPACE)] if prefix else []
    found = list(zip(tokens, scores, kinds, strict=True))
    worst = min((score for _, score, kind in found if kind == NORMAL), default=0.0)
    return TokenizerSpec(
        **common,
        model="Unigram",
        # llama.cpp has no score for user-defined symbols, and matches unused ones.
        pieces={
            text: 0.0 if kind == USER else score
            for text, score, kind in found
            if kind in (NORMAL, USER, UNUSED)
        },
        worst=float(np.float32(worst) - np.float32(PENALTY)) + PENALTY,  # subtracted in 32 bits
        scores=scores,
        bytewise=False,
        fallback=BYTE in kinds,
        fuse=True,
        normalizer=(*rules, Replace(" ", SPACE)),
        lead=Lead(ONE if prefix else KEEP),
        template=_around_pairs(common, template.roberta),  # of this model, XLM-R alone has both marks
    )


def _without_padding(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """Without the unused tokens that fill up a padded embedding table, `[PAD300]` for id 300."""
    tokens = _tokens(metadata)
    kinds = _numbers(metadata, "token_type", len(tokens), NORMAL)
    count = len(tokens)
    while count > 1 and kinds[count - 1] == UNUSED and tokens[count - 1] == f"[PAD{count - 1}]":
        count -= 1
    if count == len(tokens):
        return metadata
    scores = _numbers(metadata, "scores", len(tokens), 0.0)
    named = {"tokens": tokens[:count], "token_type": kinds[:count], "scores": scores[:count]}
    return {**metadata, **{K + name: values for name, values in named.items()}}


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    tokens = metadata.get(K + "tokens")
    if not isinstance(tokens, list) or not tokens or not all(isinstance(token, str) for token in tokens):
        raise UserError("the GGUF file's tokenizer.ggml.tokens is not a list of texts")
    limited(len(tokens), "the GGUF file")
    return tokens


# llama.cpp makes these control tokens for their names: ends of a turn or a text, and what frames fill-in-the-
# middle. Otherwise plain text that spells one would become its id.
_CONTROL_NAMES = """
<|eot_id|> <|im_end|> <|end|> <|return|> <|call|> <|flush|> <|calls|> <end_of_turn> <|endoftext|> </s>
<|eom_id|> <EOT> _<EOT> [EOT] [EOS] <|end_of_text|> <end_of_utterance> <eos> <turn|> <|tool_response>
<｜end▁of▁sentence｜> [e~[ <|fim_prefix|> <fim-prefix> <fim_prefix> <｜fim▁begin｜> <PRE> ▁<PRE>
<|code_prefix|> <|prefix|> <|fim_suffix|> <fim-suffix> <fim_suffix> <｜fim▁hole｜> <SUF> ▁<SUF>
<|code_suffix|> <|suffix|> <|fim_middle|> <fim-middle> <fim_middle> <｜fim▁end｜> <MID> ▁<MID>
<|code_middle|> <|middle|> <|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD] <|fim_repo|> <|repo_name|>
<fim-repo> <REPO> <reponame> <|file_sep|>
"""
CONTROL_NAMES = frozenset(_CONTROL_NAMES.split())


def _reclassified(tokens: list[str], kinds: list[Any]) -> list[Any]:
    """The kinds of tokens, those in CONTROL_NAMES made control tokens; Gemma 4 has `</s>` as plain text."""
    named = CONTROL_NAMES - {"</s>"} if "<|tool_response>" in tokens else CONTROL_NAMES
    return [
        CONTROL if text in named and kind in (NORMAL, USER) else kind
        for text, kind in zip(tokens, kinds, strict=True)
    ]


def _vocabulary(tokens: list[str]) -> dict[str, int]:
    """Text to id; of equal texts the last, as in llama.cpp."""
    return {text: id for id, text in enumerate(tokens)}


def _added(tokens: list[str], kinds: list[Any]) -> tuple[AddedToken, ...]:
    wanted = {UNKNOWN, CONTROL, USER}
    return tuple(
        AddedToken(id, tokens[id], special=kind != USER) for id, kind in enumerate(kinds) if kind in wanted
    )


def _merges(metadata: Mapping[str, Any]) -> list[Pair]:
    merges = metadata.get(K + "merges")
    if not isinstance(merges, list) or not all(isinstance(line, str) for line in merges):
        raise UserError("the GGUF file's tokenizer.ggml.merges is not a list of texts")
    out = []
    for line in merges:
        space = line.find(" ", 1)
        if space < 0:
            raise UserError(f"the GGUF file's merge {quoted(line)} is not two tokens with a space between")
        out.append((line[:space], line[space + 1 :]))
    return out


def _numbers(metadata: Mapping[str, Any], key: str, size: int, default: float) -> list[Any]:
    values = metadata.get(K + key)
    if values is None:
        return [default] * size
    numbers = np.asarray(values)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iuf" or len(numbers) != size:
        raise UserError(f"the GGUF file's {K}{key} is not a list of {size:,} numbers, one a token")
    return numbers.tolist()


def _id(metadata: Mapping[str, Any], key: str, size: int) -> int | None:
    value = metadata.get(f"{K}{key}_token_id")
    if value is None:
        return None
    if isinstance(value, (bool, str)) or np.ndim(value) or not np.issubdtype(type(value), np.integer):
        raise UserError(f"the GGUF file's {K}{key}_token_id is {quoted(value)}, not an id")
    if not 0 <= int(value) < size:
        return None  # files say so for "none"
    return int(value)


def _first_id(metadata: Mapping[str, Any], keys: tuple[str, ...], size: int) -> int | None:
    found = (_id(metadata, key, size) for key in keys)
    return next((id for id in found if id is not None), None)


def _bytes(metadata: Mapping[str, Any], key: str) -> bytes:
    values = metadata.get(K + key)
    if values is None:
        return b""
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.itemsize != 1 or array.dtype.kind not in "iu":
        raise UserError(f"the GGUF file's {K}{key} is not bytes")
    return array.tobytes()


def _typed(metadata: Mapping[str, Any], key: str, kind: type, default: Any) -> Any:
    value = metadata.get(K + key)
    if value is None:
        return default
    if kind is bool and isinstance(value, (bool, np.bool_)):
        return bool(value)
    if not isinstance(value, kind):
        raise UserError(f"the GGUF file's {K}{key} is {quoted(value)}, not {kind.__name__}")
    return value


def _text(metadata: Mapping[str, Any], key: str) -> str | None:
    value = metadata.get(key)
    return value if isinstance(value, str) else None


# Writing


ARCHITECTURES = {"WordPiece": "bert", "Unigram": "t5"}


def write_file(spec: TokenizerSpec) -> bytes:
    """A GGUF file that holds a vocabulary and no model, as llama.cpp's own ggml-vocab files do."""
    about = {"general.architecture": ARCHITECTURES.get(spec.model, "llama")}
    out = io.BytesIO()
    gguf.write(out, about | write(spec), {})
    return out.getvalue()


def write(spec: TokenizerSpec, size: int | None = None) -> dict[str, Any]:
    """The spec as GGUF metadata; vocabularies are filled up to `size` tokens.

    Raises UserError for what GGUF cannot say.
    """
    out = _write_model(spec)
    count = max(size or 0, len(spec.tokens))
    if size is not None and size < len(spec.tokens):
        raise UserError(f"there are {len(spec.tokens):,} tokens, and the model's embedding {size:,} rows")
    out[K + "tokens"] = _filled(_spelt(spec), count)
    out[K + "token_type"] = _kinds(spec, count)
    if spec.scores is not None:
        out[K + "scores"] = np.array([*spec.scores, *[-1000.0] * (count - len(spec.scores))], np.float32)
    ids = {f"{K}{key}_token_id": getattr(spec, field) for field, key in IDS.items()}
    out |= {key: np.uint32(id) for key, id in ids.items() if id is not None}
    ends = [id for id in spec.ends() if id != spec.eos and id in spec.eot]
    out |= {f"{K}{key}_token_id": np.uint32(id) for key, id in zip(("eot", "eom"), ends, strict=False)}
    out |= {K + "add_bos_token": spec.add_bos, K + "add_eos_token": spec.add_eos}
    if spec.chat_template is not None:
        out["tokenizer.chat_template"] = spec.chat_template
    return out


def _write_model(spec: TokenizerSpec) -> dict[str, Any]:
    """What belongs to one of llama.cpp's kinds of tokenizer."""
    if spec.model == "WordPiece":
        return _write_wordpiece(spec)
    if spec.model == "Unigram":
        return _write_unigram(spec)
    if spec.model != "BPE":
        raise UserError(f"GGUF has no {spec.model} tokenizer")
    if spec.bytewise:
        pre = _pre(spec)
        _only(spec, (Unicode("NFC"),))
        return {K + "model": "gpt2", K + "pre": pre, K + "merges": _lines(spec)}
    if spec.pre == "gemma4":
        return {K + "model": "gemma4", K + "merges": _lines(spec)}
    return _write_scored(spec)


def _write_wordpiece(spec: TokenizerSpec) -> dict[str, Any]:
    """BERT, which llama.cpp cleans in one way."""
    if (spec.normalizer, spec.pretokenizer) != ((BertNormalizer(),), (BertPreTokenizer(),)):
        raise UserError("llama.cpp cleans and cuts text for a bert as the uncased BERT does, unlike this one")
    if spec.continues != CONTINUES or spec.unknown is None:
        raise UserError(f"GGUF's bert has an unknown token, and {CONTINUES!r} before tokens that go on")
    begin, end = spec.bos, spec.eos
    ids = {"cls": begin, SEPARATOR[0]: end}
    named = {f"{K}{key}_token_id": np.uint32(id) for key, id in ids.items() if id is not None}
    return {K + "model": "bert", K + "pre": "default", K + "token_type_count": np.uint32(2), **named}


def _write_unigram(spec: TokenizerSpec) -> dict[str, Any]:
    """SentencePiece's Unigram: its map of characters, and what happens to spaces."""
    rules = list(spec.normalizer)
    charsmap = rules.pop(0).data if rules and isinstance(rules[0], Charsmap) else b""
    spoken = next((flags for *flags, known in _UNIGRAM_RULES if rules == known), None)
    if spec.unknown is None:
        raise UserError("GGUF's Unigram has an unknown token, and this tokenizer has none: save a folder")
    if spec.pretokenizer or spoken is None:
        steps = spec.pretokenizer or spec.normalizer
        named = " and ".join(type(step).__name__ for step in steps) or "nothing is done to spaces"
        does = "cuts" if spec.pretokenizer else "normalises"
        raise UserError(
            f"GGUF cannot say how this Unigram tokenizer {does} text before it is encoded ({named}): save a "
            "folder, or give the model's SentencePiece file as tokenizer.model in the place of tokenizer.json"
        )
    squeeze, prefix = spoken
    spaces = {K + "add_space_prefix": prefix, K + "remove_extra_whitespaces": squeeze}
    mapped = {K + "precompiled_charsmap": np.frombuffer(charsmap, np.uint8)} if charsmap else {}
    return {K + "model": "t5", K + "pre": "default", **spaces, **mapped}


_UNIGRAM_RULES = [
    (squeeze, prefix, [*squeezing, *prefixing, Replace(" ", SPACE)])
    for squeezes, prefixes in (([OneSpace()], [Prefix(" ")]), (list(SQUEEZED), [Prepend(SPACE)]))
    for squeeze, squeezing in ((True, squeezes), (False, []))
    for prefix, prefixing in ((True, prefixes), (False, []))
]


def _pre(spec: TokenizerSpec) -> str:
    """The name that llama.cpp knows the pre-tokeniser by."""
    if spec.pre is not None:
        return spec.pre
    for pre, patterns in pretokenize.SPELLINGS:
        if spec.pretokenizer == tuple(Split(p) for p in patterns) and spec.whole == (
            pre in pretokenize.WHOLE
        ):
            return pre
    raise UserError("GGUF has no name for this tokenizer's pre-tokeniser: llama.cpp would split otherwise")


def _only(spec: TokenizerSpec, allowed: tuple[Any, ...]) -> None:
    """UserError for a normaliser that is lost; Qwen's NFC, which GGUF has no field for, is a warning."""
    for rule in spec.normalizer:
        if rule not in allowed:
            raise UserError(f"GGUF cannot say that text is normalised ({rule})")
        warnings.warn(
            "GGUF has no field for a normaliser: text that is not in NFC gets other ids in the written file",
            RuntimeWarning,
            stacklevel=5,
        )


def _write_scored(spec: TokenizerSpec) -> dict[str, Any]:
    """SentencePiece's BPE: scores, and whether a space goes in front."""
    space = pretokenize.SPACE
    ways: dict[tuple[Any, ...], bool] = {
        (Prepend(space), Replace(" ", space)): True,
        (Prefix(" "), Replace(" ", space)): True,
        (Replace(" ", space),): False,
    }
    if spec.scores is None:
        raise UserError("GGUF needs a score for every token: load the model's tokenizer.model")
    if spec.pretokenizer or spec.normalizer not in ways:
        raise UserError(f"GGUF cannot say how this tokenizer normalises text ({spec.normalizer})")
    if not spec.fallback:
        raise UserError("llama.cpp writes what a vocabulary lacks as bytes, and this one has no byte tokens")
    return {K + "model": "llama", K + "pre": "default", K + "add_space_prefix": ways[spec.normalizer]}


def _lines(spec: TokenizerSpec) -> list[str]:
    pairs = spec.merges if spec.merges is not None else all_splits(spec)
    return [f"{left} {right}" for left, right in pairs]


def _spelt(spec: TokenizerSpec) -> list[str | None]:
    """Every token's text in GGUF's spelling: BERT's words begin with U+2581, their spec with nothing."""
    if spec.model != "WordPiece":
        return list(spec.tokens)
    control = {token.id for token in spec.added if token.special}
    return [text if id in control else _bert_spelling(text) for id, text in enumerate(spec.tokens)]


def _bert_spelling(text: str | None) -> str | None:
    if text is None or (text.startswith("[") and text.endswith("]")):
        return text
    return text.removeprefix(CONTINUES) if text.startswith(CONTINUES) else SPACE + text


def _filled(tokens: list[str | None], count: int) -> list[str]:
    """Every token's text; ids that have none are padding."""
    texts = [*tokens, *[None] * (count - len(tokens))]
    return [f"[PAD{id}]" if text is None else text for id, text in enumerate(texts)]


def _kinds(spec: TokenizerSpec, count: int) -> np.ndarray:
    """Every token's kind, int32 [count]."""
    kinds = np.full(count, NORMAL, np.int32)
    if spec.fallback:
        kinds[[spec.vocabulary[token] for token in BYTE_TOKENS if token in spec.vocabulary]] = BYTE
    for token in spec.added:
        kinds[token.id] = CONTROL if token.special else USER
    if spec.unknown is not None and spec.merges is None and kinds[spec.unknown] == CONTROL:
        kinds[spec.unknown] = UNKNOWN
    kinds[list(spec.users)] = USER
    nameless = [id for id, text in enumerate(spec.tokens) if text is None]
    kinds[[*nameless, *spec.unused, *range(len(spec.tokens), count)]] = UNUSED
    return kinds
