"""A tokenizer written as Hugging Face's tokenizer.json, so that their `tokenizers` gives the same ids."""

import base64
import json
from dataclasses import asdict
from typing import Any

from cutaway.errors import UserError
from cutaway.tokenizer import normalize
from cutaway.tokenizer.added import AddedToken
from cutaway.tokenizer.charsmap import Charsmap, Precompiled
from cutaway.tokenizer.decode import FIRST, KEEP, Words
from cutaway.tokenizer.formats.hf_rules import BEHAVIOURS, PUNCTUATION, WHITESPACE, WHITESPACE_SPLIT
from cutaway.tokenizer.formats.merges import all_splits
from cutaway.tokenizer.normalize import ReplaceMatches, Rule
from cutaway.tokenizer.pretokenize import GPT2, SPACE, InBytes, Metaspace, PrefixSpace, Split, Step
from cutaway.tokenizer.spec import TokenizerSpec
from cutaway.tokenizer.template import PairTemplate, Piece
from cutaway.tokenizer.wordpiece import BertNormalizer, BertPreTokenizer


def write_file(spec: TokenizerSpec) -> bytes:
    """The spec as a tokenizer.json. Raises UserError for what the format cannot say."""
    return json.dumps(write(spec), ensure_ascii=False, indent=2).encode()


def write(spec: TokenizerSpec) -> dict[str, Any]:
    """The spec as the object of a tokenizer.json. Raises UserError for what the format cannot say."""
    if spec.unused:
        raise UserError("tokenizer.json cannot say that a token is unused, as this vocabulary does")
    if spec.beyond is not None:
        raise UserError("tokenizer.json cannot say what Marian's two SentencePiece files do: keep those")
    model = {"BPE": _write_bpe, "Unigram": _write_unigram}.get(spec.model, _write_words)(spec)
    normalizer, pretokenizer = _write_rules(spec), _write_steps(spec)
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [_write_added(token) for token in sorted(spec.added, key=lambda token: token.id)],
        "normalizer": _sequence(normalizer, "normalizers"),
        "pre_tokenizer": _sequence(pretokenizer, "pretokenizers"),
        "post_processor": _write_processor(spec),
        "decoder": _write_decoder(spec),
        "model": model,
    }


def _write_bpe(spec: TokenizerSpec) -> dict[str, Any]:
    unknown = None if spec.unknown is None else spec.tokens[spec.unknown]
    merges = spec.merges if spec.merges is not None else all_splits(spec)
    return {
        "type": "BPE",
        "dropout": None,
        "unk_token": None if spec.bytewise or unknown not in spec.vocabulary else unknown,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": spec.fuse,
        "byte_fallback": spec.fallback,
        "ignore_merges": spec.whole,
        "vocab": _in_order(_written_vocabulary(spec)),
        "merges": [list(pair) for pair in merges],
    }


def _write_words(spec: TokenizerSpec) -> dict[str, Any]:
    """WordPiece, or whole words."""
    words = {"type": spec.model, "unk_token": _unknown(spec), "vocab": _in_order(_written_vocabulary(spec))}
    parts = {"continuing_subword_prefix": spec.continues, "max_input_chars_per_word": spec.longest}
    return words | parts if spec.model == "WordPiece" else words


def _write_unigram(spec: TokenizerSpec) -> dict[str, Any]:
    """Unigram's list of pieces and scores; `tokenizers` counts the penalty from the worst of all scores.

    What text cannot come to (control tokens, bytes) gets the score 0, so that it is not the worst.
    """
    pieces = spec.pieces or {}
    vocabulary = _in_order(_written_vocabulary(spec))
    if list(vocabulary.values()) != list(range(len(vocabulary))):
        raise UserError("tokenizer.json cannot say that an id of a Unigram vocabulary has no piece")
    if spec.worst is not None and spec.worst != min(pieces.values(), default=0.0):
        raise UserError("tokenizer.json counts the penalty for unknown characters from another piece's score")
    return {
        "type": "Unigram",
        "unk_id": spec.unknown,
        "vocab": [[text, pieces.get(text, 0.0)] for text in vocabulary],
        "byte_fallback": spec.fallback,
    }


def _unknown(spec: TokenizerSpec) -> str:
    text = None if spec.unknown is None else spec.tokens[spec.unknown]
    if text is None:
        raise UserError(f"tokenizer.json needs an unknown token for a {spec.model} vocabulary")
    return text


def _in_order(vocabulary: dict[str, int]) -> dict[str, int]:
    return dict(sorted(vocabulary.items(), key=lambda item: item[1]))


def _written_vocabulary(spec: TokenizerSpec) -> dict[str, int]:
    """The model's vocabulary, with the added tokens where they would not get their own ids otherwise.

    The reader gives an added token that the vocabulary lacks the next free id, whatever its entry says.
    """
    vocabulary = dict(spec.vocabulary)
    lacking = sorted((token.id, token.text) for token in spec.added if token.text not in vocabulary)
    if [id for id, _ in lacking] != list(range(len(vocabulary), len(vocabulary) + len(lacking))):
        vocabulary |= {text: id for id, text in lacking}
    return vocabulary


def _write_added(token: AddedToken) -> dict[str, Any]:
    flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
    return {"id": token.id, "content": token.text, **{flag: getattr(token, flag) for flag in flags}}


def _write_rules(spec: TokenizerSpec) -> list[dict[str, Any]]:
    """The normalisers.

    SentencePiece's, which know where a text begins, can be written where nothing cuts the text.
    """
    knowing = any(isinstance(rule, (normalize.Prefix, normalize.OneSpace)) for rule in spec.normalizer)
    if knowing and not all(token.special for token in spec.added):
        raise UserError("tokenizer.json cannot say that a space goes before a text, not after an added token")
    squeezing = ReplaceMatches(" {2,}", " "), ReplaceMatches(r"\A | \z", "")
    rules = [squeezing if rule == normalize.OneSpace() else (rule,) for rule in spec.normalizer]
    return [_write_rule(one) for several in rules for one in several]


def _write_rule(rule: Rule) -> dict[str, Any]:
    match rule:
        case normalize.Unicode(form):
            return {"type": form}
        case normalize.Lowercase() | normalize.StripAccents():
            return {"type": type(rule).__name__}
        case BertNormalizer():
            return {"type": "BertNormalizer", **asdict(rule)}
        case Precompiled(data) | Charsmap(data, ()):
            return {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}
        case normalize.Replace(old, new):
            return {"type": "Replace", "pattern": {"String": old}, "content": new}
        case ReplaceMatches(pattern, new):
            return {"type": "Replace", "pattern": {"Regex": pattern}, "content": new}
        case normalize.Prepend(prefix) | normalize.Prefix(prefix):
            return {"type": "Prepend", "prepend": prefix}
        case normalize.Strip(left, right):
            return {"type": "Strip", "strip_left": left, "strip_right": right}
    raise UserError(f"tokenizer.json cannot say what the normaliser {type(rule).__name__} does")


def _write_steps(spec: TokenizerSpec) -> list[dict[str, Any]]:
    steps = list(spec.pretokenizer)
    inner = steps.pop().steps if steps and isinstance(steps[-1], InBytes) else ()
    last = []
    if spec.bytewise:
        regular = len(steps) > 1 and steps[-2:] == [PrefixSpace(), Split(GPT2)]
        steps = steps[:-1] if regular else steps
        prefix = bool(steps) and steps[-1] == PrefixSpace()
        steps = steps[:-1] if prefix else steps
        last = [{"type": "ByteLevel", "add_prefix_space": prefix, "trim_offsets": True, "use_regex": regular}]
    return [_write_step(step) for step in steps] + last + [_write_step(step) for step in inner]


def _write_step(step: Step) -> dict[str, Any]:
    match step:
        case Split() if step == WHITESPACE:
            return {"type": "Whitespace"}
        case Split() if step == WHITESPACE_SPLIT:
            return {"type": "WhitespaceSplit"}
        case Split(pattern="\\p{N}", behaviour="isolated" | "contiguous", invert=False):
            return {"type": "Digits", "individual_digits": step.behaviour == "isolated"}
        case Split(pattern=pattern, invert=False) if pattern == PUNCTUATION:
            return {"type": "Punctuation", "behavior": _behaviour(step.behaviour)}
        case Split(pattern, behaviour, invert):
            cut = {"pattern": {"Regex": pattern}, "behavior": _behaviour(behaviour), "invert": invert}
            return {"type": "Split", **cut}
        case BertPreTokenizer():
            return {"type": "BertPreTokenizer"}
        case Metaspace(replacement, prepend, split):
            return {
                "type": "Metaspace",
                "replacement": replacement,
                "prepend_scheme": prepend,
                "split": split,
            }
    raise UserError(f"tokenizer.json cannot say what the pre-tokeniser {type(step).__name__} does here")


def _behaviour(ours: str) -> str:
    return next(name for name, known in BEHAVIOURS.items() if known == ours)


def _write_decoder(spec: TokenizerSpec) -> dict[str, Any] | None:
    if spec.words is not None:
        fields = {"prefix": spec.words.continues, "cleanup": spec.words.cleanup}
        return None if spec.words == Words() else {"type": "WordPiece", **fields}
    if spec.bytewise:
        return {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    if spec.lead.rule == FIRST:
        return {"type": "Metaspace", "replacement": SPACE, "prepend_scheme": "always", "split": True}
    decoders: list[dict[str, Any]] = [{"type": "Replace", "pattern": {"String": SPACE}, "content": " "}]
    decoders += [{"type": "ByteFallback"}] if spec.fallback else []
    decoders.append({"type": "Fuse"})
    if spec.lead.rule != KEEP:
        decoders.append({"type": "Strip", "content": " ", "start": 1, "stop": 0})
    return {"type": "Sequence", "decoders": decoders}


def _write_processor(spec: TokenizerSpec) -> dict[str, Any] | None:
    """What goes around a text; a template lists the end of text even where no text gets it."""
    template = _template(spec)
    ids = [what for what, _ in (*template.single, *template.pair) if isinstance(what, int)]
    level = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    processors = [level] if spec.bytewise and not any(spec.around()) else []
    if listed := {spec.tokens[id]: id for id in (*ids, spec.eos) if id is not None}:
        single, pair = ([_piece(spec, *piece) for piece in side] for side in (template.single, template.pair))
        special = {name: {"id": name, "ids": [id], "tokens": [name]} for name, id in listed.items()}
        named = {"single": single, "pair": pair, "special_tokens": special}
        processors.append({"type": "TemplateProcessing", **named})
    return _sequence(processors, "processors")


def _template(spec: TokenizerSpec) -> PairTemplate:
    """The template that was read, where it has what goes around a text; else two texts, each as if alone."""
    before, behind = spec.around()
    found = spec.template
    if found is not None and [what for what, _ in found.single] == [*before, "A", *behind]:
        return found
    first = *(Piece(id, 0) for id in before), Piece("A", 0), *(Piece(id, 0) for id in behind)
    second = *(Piece(id, 1) for id in before), Piece("B", 1), *(Piece(id, 1) for id in behind)
    return PairTemplate((*first, *second), first)


def _piece(spec: TokenizerSpec, what: int | str, segment: int) -> dict[str, Any]:
    if isinstance(what, str):
        return {"Sequence": {"id": what, "type_id": segment}}
    return {"SpecialToken": {"id": spec.tokens[what], "type_id": segment}}


def _sequence(entries: list[dict[str, Any]], inner: str) -> dict[str, Any] | None:
    if not entries:
        return None
    return entries[0] if len(entries) == 1 else {"type": "Sequence", inner: entries}
