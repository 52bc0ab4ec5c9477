"""The tokenizer: text to ids and back, control tokens only where the caller allows them.

Encoding goes as Hugging Face's does: added tokens are found, the text between them is normalised, cut into
pieces, and each piece encoded by itself (so that a piece seen before costs one look-up). Text never becomes a
control token unless special="allow".
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import chain
from typing import TYPE_CHECKING, Any

from cutaway.errors import UserError
from cutaway.native import library
from cutaway.native.bpe import Core
from cutaway.tokenizer import bpe, compiled, fast
from cutaway.tokenizer.added import AddedToken, Finder
from cutaway.tokenizer.bpe import Pair
from cutaway.tokenizer.decode import FIRST, NOTHING, Decoder
from cutaway.tokenizer.normalize import normalize
from cutaway.tokenizer.pretokenize import SPACE
from cutaway.tokenizer.spec import TokenizerSpec
from cutaway.tokenizer.text_encoder import TextEncoder
from cutaway.tokenizer.unicode import utf8

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

    from cutaway.tokenizer.word_counts import WordCounts

MODES = ("text", "allow", "forbid")


class Tokenizer:
    """A vocabulary with the rules of its use.

    `special` holds the control tokens and `added` every added token, text to id. `bos`, `eos`, `pad`,
    `unknown` are ids or None; `eos_ids` those that end an answer; `add_bos` and `add_eos` whether the model's
    prompts have them; `before` and `behind` all ids that are put around a text.
    """

    def __init__(self, spec: TokenizerSpec) -> None:
        self.spec = spec
        self.bos, self.eos, self.pad, self.unknown = spec.bos, spec.eos, spec.pad, spec.unknown
        self.add_bos, self.add_eos = spec.add_bos, spec.add_eos
        self.before, self.behind = spec.around()
        self.eos_ids = spec.ends()
        self.chat_template = spec.chat_template
        self.added = {token.text: token.id for token in spec.added}
        self.special = {token.text: token.id for token in spec.added if token.special}
        self._added = {token.id: token for token in spec.added}
        self._control = frozenset(self.special.values())
        self._encoders: dict[frozenset[int], TextEncoder] = {}
        self._name: str | None = None  # of the compiled vocabulary on disk
        self._bytes = _Bytes(self)

    @classmethod
    def load(
        cls,
        source: str | os.PathLike[str],
        pattern: str | None = None,
        special: Mapping[str, int] | None = None,
    ) -> Tokenizer:
        """The tokenizer in a .gguf, tokenizer.json, .model or .tiktoken file, a folder, or of a model's name.

        A rank file needs `pattern` (a name such as "cl100k", or a regular expression) and takes `special`
        tokens. Raises UserError for what cannot be read or is not supported, by name.
        """
        from cutaway.tokenizer import spec_files

        def read() -> TokenizerSpec:
            return spec_files.read_spec(source, pattern, special)

        return cls._opened(spec_files.spec_digest(source, pattern, special), read)

    @classmethod
    def _opened(cls, name: str | None, read: Callable[[], TokenizerSpec]) -> Tokenizer:
        """The tokenizer kept compiled under a name, else what `read` gives, to be kept once compiled."""
        recalled = None if name is None or library.unavailable_reason() else compiled.recall(name, read)
        if recalled is None:
            tokenizer = cls(read())
        else:
            tokenizer = cls(recalled[0])
            vars(tokenizer)["_path"] = fast.Path(recalled[1], recalled[0].pretokenizer)
        tokenizer._name = name
        return tokenizer

    @classmethod
    def train(
        cls,
        texts_or_files: str | os.PathLike[str] | Iterable[str | os.PathLike[str]] | WordCounts,
        size: int = 32768,
        pattern: str | None = None,
        special: Iterable[str] = (),
        *,
        kind: str = "bpe",
        end_of_text: str | None = None,
        progress: Callable[[str, int, int | None], None] | None = None,
        **rules: Any,
    ) -> Tokenizer:
        """A vocabulary of `size` tokens, learned from texts (str), files (pathlib.Path) or WordCounts.

        `kind` is "bpe", "unigram" or "wordpiece"; `rules` are those of its function in training.py:
        min_frequency, and level="byte" or "character" for BPE. `pattern` cuts text into words, a name or a
        regex ("cl100k" for BPE, "metaspace" for Unigram, "bert" for WordPiece unless given); WordCounts bring
        theirs, and their special tokens. `special` tokens are no text to learn from; `end_of_text` is one
        more, and the tokenizer's `eos`, which pretraining puts between documents. A RuntimeWarning tells when
        the corpus gives less than `size`. Raises UserError for what cannot be trained on.
        """
        from cutaway.tokenizer import training
        from cutaway.tokenizer.word_counts import WordCounts

        learn, usual = training.kind(kind)
        counts = texts_or_files
        if not isinstance(counts, WordCounts):
            counts = WordCounts.of(
                counts, pattern or usual, training.with_end(special, end_of_text), progress=progress
            )
        return cls(training.learned(learn, counts, size, end_of_text, progress=progress, **rules))

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """The tokenizer in a GGUF file's metadata. Raises UserError for what is not supported, by name."""
        from cutaway.tokenizer.formats import gguf

        held = dict(metadata)
        return cls._opened(compiled.digest_of(held), lambda: gguf.read(held))

    def to_gguf(self, size: int | None = None) -> dict[str, Any]:
        """The `tokenizer.ggml.*` metadata with which llama.cpp gives the same ids.

        Raises UserError if there is none.

        `size` is the number of rows of the model's embedding, if that is more than there are tokens.
        """
        from cutaway.tokenizer.formats import gguf

        return gguf.write(self.spec, size)

    def save(self, path: str | os.PathLike[str], *, force: bool = True) -> Path:
        """Write a file that its own library reads to the same ids; the name says which kind.

        .json is Hugging Face's tokenizer.json (a folder gets one inside), .model SentencePiece's, .tiktoken
        OpenAI's ranks, .gguf llama.cpp's metadata without a model, .txt BERT's vocab.txt. Raises UserError
        for what a format cannot say, and for a file that exists unless `force`. Returns the file's path.
        """
        from cutaway.tokenizer.spec_files import save_spec

        return save_spec(self.spec, path, force)

    def encode(self, text: str, special: str = "text", add_special: bool = False) -> list[int]:
        """The ids of a text; `add_special` puts the tokens around it that the model's inputs have.

        Those are BOS and EOS, or an encoder's [CLS] and [SEP], as far as `add_bos` and `add_eos` say so. What
        spells a control token is encoded as plain text ("text"), as the token ("allow"), or raises UserError
        ("forbid"). Added tokens that are not control tokens are always found. Raises UserError for lone
        surrogates.
        """
        encoder, segments = self._segments(text, special)
        with _whole(text, encoder):
            ids = list(chain.from_iterable(encoder.encoded(segments)))
        return self.framed(ids) if add_special else ids

    def framed(self, ids: Iterable[int]) -> list[int]:
        """Ids with what the model's inputs have in front and behind (`before`, `behind`)."""
        return [*self.before, *ids, *self.behind]

    @property
    def path(self) -> str:
        """How text is encoded: natively, and by which scanner, or by the reference, and why."""
        return str(self._path)

    def encode_array(self, text: str, special: str = "text", threads: int | None = None) -> np.ndarray:
        """`encode` as int32 [n]; a long text is encoded on several `threads` (default: all there are)."""
        import numpy as np

        encoder, segments = self._segments(text, special)
        count = library.threads() if threads is None else threads
        with _whole(text, encoder):
            arrays = [encoder.array(part, count) for part in encoder.stretches(segments)]
        return arrays[0] if len(arrays) == 1 else np.concatenate([np.zeros(0, np.int32), *arrays])

    def encode_batch(
        self, texts: Iterable[str], special: str = "text", threads: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The ids of many texts, int32 [n], and where each begins and ends, int64 [texts + 1].

        On `threads` (default: all there are). UserError for one text alone.
        """
        import numpy as np

        if isinstance(texts, str):
            raise UserError("encode_batch takes many texts, and this is one: give a list")
        texts = list(texts)
        count = library.threads() if threads is None else threads
        if (found := self._batch(texts, special, count)) is not None:
            return found
        arrays = [self.encode_array(text, special, count) for text in texts]
        offsets = np.zeros(len(arrays) + 1, np.int64)
        np.cumsum([len(array) for array in arrays], out=offsets[1:])
        return np.concatenate(arrays, dtype=np.int32) if arrays else np.zeros(0, np.int32), offsets

    def _batch(self, texts: list[str], special: str, threads: int) -> tuple[np.ndarray, np.ndarray] | None:
        """`encode_batch` where each text is one stretch, which the core takes as it is."""
        path = self._path
        if isinstance(path, str) or path.scanner is None or special != "text":
            return None
        encoder = self._encoder(self._control)
        if encoder.raw.pattern or encoder.late.pattern or self.spec.normalizer or not texts:
            return None
        try:
            given = list(map(path.given, texts)) if path.prefix else texts
            return path.core.batch(path.scanner, given, threads)
        except (UnicodeEncodeError, TypeError):
            return None

    def encode_parts(
        self, text: str, control: Sequence[tuple[int, int, int]], never: frozenset[int] = frozenset()
    ) -> list[int]:
        """The ids of a text with (start, stop, id) of `control` as tokens, and no other id of `never`.

        Spans are in order and do not overlap; an id's own lstrip and rstrip apply. The rest is as in
        `encode`.
        """
        _check(text)
        encoder = self._encoder(self._control | never)
        spans = [(self._added.get(id, AddedToken(id, "")), start, stop) for start, stop, id in control]
        with encoder.time_limit(len(text)):
            return list(chain.from_iterable(encoder.encoded(encoder.segments(text, spans))))

    def count(self, text: str, special: str = "text") -> int:
        """How many ids a text has."""
        encoder, segments = self._segments(text, special)
        with _whole(text, encoder):
            return sum(map(encoder.count, encoder.stretches(segments)))

    def decode(self, ids: Iterable[int] | np.ndarray, skip_special: bool = False) -> str:
        """The text of ids; bytes that are no UTF-8 become U+FFFD. Raises UserError for an id that is none."""
        return self._decoded(ids, skip_special).decode("utf-8", "replace")

    def decode_bytes(self, ids: Iterable[int] | np.ndarray, skip_special: bool = False) -> bytes:
        """The exact bytes of ids, as far as the vocabulary keeps them."""
        return bytes(self._decoded(ids, skip_special))

    def _decoded(self, ids: Iterable[int] | np.ndarray, skip_special: bool) -> bytes | bytearray:
        path = self._path
        if (
            not isinstance(path, str)
            and not skip_special
            and self.spec.lead == NOTHING
            and self.spec.words is None
        ) and (found := path.decoded(ids)) is not None:
            return found
        return self.stream(skip_special).all(map(int, ids))

    def decode_stream(self, ids: Iterable[int], skip_special: bool = False) -> Iterator[str]:
        """The text of ids as they come, whole characters at a time; joined, it is `decode` of all of them."""
        decoder = self.stream(skip_special)
        for id in ids:
            if text := decoder.push(int(id)):
                yield text
        if text := decoder.finish():
            yield text

    def stream(self, skip_special: bool = False) -> Decoder:
        """A decoder for ids as they come: what it returns, joined, is `decode` of all of them."""
        surface = self.unknown if self.spec.surface is not None else None
        skip = self.is_special if skip_special else None
        return Decoder(self._bytes.__getitem__, self.spec.lead, skip, surface, self._first_of())

    def merges_of(self, text: str) -> list[tuple[str, list[Pair]]]:
        """Each piece of a text in the vocabulary's spelling, with its merges in order."""
        from cutaway.tokenizer.pieces import pieces

        return [(piece.text, list(piece.merges)) for piece in pieces(self, text)]

    @property
    def plain(self) -> TextEncoder:
        """The encoder for text of which nothing becomes a control token."""
        return self._encoder(self._control)

    def is_special(self, id: int) -> bool:
        """Whether an id is a control token."""
        return id in self._control

    def token_text(self, id: int) -> str:
        """A token as the vocabulary writes it. Raises UserError for an id that is none."""
        text = self.spec.tokens[id] if 0 <= id < len(self.spec.tokens) else None
        if text is None:
            raise UserError(f"{id} is no id of this vocabulary, which has {len(self)} tokens")
        return text

    def token_bytes(self, id: int) -> bytes:
        """The bytes that a token stands for. Raises UserError for an id that is none."""
        return self._bytes[id]

    def id_of(self, token_text: str) -> int | None:
        """The id of a token as the vocabulary writes it, or None."""
        return self._all.get(token_text)

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return f"Tokenizer({len(self):,} tokens, {len(self.special)} of them control tokens)"

    def _first_of(self) -> Callable[[int], bytes] | None:
        if (words := self.spec.words) is not None:
            return lambda id: words.first(self._bytes.written(id)).encode("utf-8", "surrogatepass")
        if self.spec.lead.rule == FIRST:
            return lambda id: self._bytes.of(self._bytes.written(id).replace(SPACE, ""), id)
        return None

    @cached_property
    def _size(self) -> int:
        return len(self.spec.tokens)

    @cached_property
    def _all(self) -> dict[str, int]:
        return {text: id for id, text in enumerate(self.spec.tokens) if text is not None}

    @cached_property
    def _path(self) -> fast.Path | str:
        """The fast path, or why there is none."""
        if (reason := fast.unsupported_reason(self.spec)) is not None:
            return reason
        hidden = self._encoder(self._control).hidden
        tokens = [b"" if text is None else self._bytes[id] for id, text in enumerate(self.spec.tokens)]
        laid_out = fast.compiled(self.spec, hidden, tokens)
        if laid_out is None:
            return "The Python code encodes: the core has no layout for a vocabulary of this kind or size."
        if self._name is not None:
            compiled.keep(self._name, self.spec, laid_out)
        return fast.Path(Core(laid_out), self.spec.pretokenizer)

    def _segments(self, text: str, special: str) -> tuple[TextEncoder, list[str | int]]:
        if special not in MODES:
            raise UserError(f'special is "text", "allow" or "forbid", not {special!r}')
        if isinstance(self._path, str) or not isinstance(text, str):
            _check(text)  # the core refuses half a surrogate pair by itself
        if special == "allow":
            allowing = self._encoder(frozenset())
            return allowing, allowing.segments(text)
        if special == "forbid":
            Finder({token.text: token for token in self.spec.added if token.special}).refuse(text)
        encoder = self._encoder(self._control)
        for id in self.spec.openers:
            if text.startswith(opener := self.spec.tokens[id] or ""):
                return encoder, [id, *encoder.segments(text[len(opener) :])]
        return encoder, encoder.segments(text)

    def _encoder(self, never: frozenset[int]) -> TextEncoder:
        if never not in self._encoders:
            self._encoders[never] = TextEncoder(
                self.spec, never, self._control, self._encoders, lambda: self._path
            )
        return self._encoders[never]


class _Bytes(dict[int, bytes]):
    """What each token stands for, found out when it is first asked for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    def __missing__(self, id: int) -> bytes:
        held = vars(self.tokenizer).get("_path")
        data = None if held is None or isinstance(held, str) else held.core.token(id)
        self[id] = data = self.of(self.written(id), id) if data is None else data
        return data

    def written(self, id: int) -> str:
        """A token's text as decoding takes it: `tokenizers` keeps a normalised added token normalised."""
        token, text = self.tokenizer._added.get(id), self.tokenizer.token_text(id)
        return normalize(self.tokenizer.spec.normalizer, text) if token and token.normalized else text

    def of(self, text: str, id: int) -> bytes:
        """The bytes of a token that is written so."""
        spec = self.tokenizer.spec
        if spec.words is not None:
            return spec.words.later(text).encode("utf-8", "surrogatepass")
        if id == spec.unknown and spec.surface is not None:
            return spec.surface.encode()
        if id in self.tokenizer._added and (spec.bytewise or spec.verbatim):
            return text.encode("utf-8", "surrogatepass")
        if spec.bytewise:
            data = bpe.unspell(text)
            return text.encode() if data is None else data
        if spec.fallback and text in _BYTE_OF:
            return bytes([_BYTE_OF[text]])
        return text.replace(SPACE, " ").encode("utf-8", "surrogatepass")


_BYTE_OF = {token: byte for byte, token in enumerate(bpe.BYTE_TOKENS)}


@contextmanager
def _whole(text: str, encoder: TextEncoder) -> Iterator[None]:
    """Turns the core's meeting half a surrogate pair into the sentence that says where."""
    try:
        with encoder.time_limit(len(text)):
            yield
    except UnicodeEncodeError:
        _check(text)
        raise


def _check(text: str) -> None:
    if not isinstance(text, str):
        raise UserError(f"a tokenizer encodes text, not {type(text).__name__}")
    if not text.isascii():
        utf8(text, "the text")
