"""Whole texts through a model: a vector for each, a classifier's labels, a reranker's scores.

An encoder's vectors and labels, and a decoder's vectors, are computed by the engine that answers; a decoder's
labels by the PyTorch model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict, get_args

import numpy as np

from cutaway import store
from cutaway.engines import Engines
from cutaway.errors import UserError
from cutaway.model.config import Decoder, Encoder, EncoderDecoder
from cutaway.runtime import text_vectors
from cutaway.runtime.numpy_layers import Layers
from cutaway.weights import pooling as stated_pooling
from cutaway.weights.classifier import Classes, Classifier, read_classifier, sigmoid
from cutaway.weights.pair_inputs import PairInputs

if TYPE_CHECKING:
    from cutaway.inspect import edits
    from cutaway.runtime.text_vectors import Pooling
    from cutaway.tokenizer import Tokenizer

Text = str | Sequence[int]


class ReadOptions(TypedDict, total=False):
    """How texts are read: ``batch`` (32) at once, their ends cut off by ``truncate`` where they are too long.

    ``progress`` counts them.
    """

    batch: int
    truncate: bool
    progress: store.Progress


class EmbedOptions(ReadOptions, total=False):
    """What `embed` takes beside texts, pooling and length; each may be left out.

    ``dimensions`` cuts vectors to their first numbers, for models trained for it (Matryoshka, 2205.13147).
    """

    dimensions: int | None


POOLINGS = get_args(text_vectors.Pooling)


@dataclass(frozen=True)
class WholeTexts:
    """Reads whole texts with a model's engines; ``ids`` encodes one."""

    engines: Engines
    get_tokenizer: Callable[[], Tokenizer]
    ids: Callable[[Text], list[int]]

    def vectors(
        self,
        texts: Sequence[Text],
        edit: edits.Given,
        pooling: Pooling | None,
        normalise: bool,
        dimensions: int | None = None,
        batch: int = 32,
        truncate: bool = False,
        progress: store.Progress = store.silent,
    ) -> np.ndarray:
        """float32 [n d], as ``LanguageModel.embed`` describes them; ``edit`` acts on a decoder's texts."""
        engines, checkpoint = self.engines, self.engines.checkpoint
        if isinstance(texts, str):
            raise UserError("embed takes a list of texts, and this is one: write embed([text])")
        if isinstance(engines.config, EncoderDecoder):
            engines.decoder()
        if batch < 1:
            raise UserError(f"a batch of {batch} texts reads nothing: use 1 or more")
        chosen = self._pooling(pooling)
        rows = [self.row(i, text, truncate) for i, text in enumerate(texts)]
        if not rows:
            return np.empty((0, engines.config.width), np.float32)
        dense = stated_pooling.dense(checkpoint)
        encoding, plain = self._encoding(edit), normalise and not dense
        found = text_vectors.vectors(encoding, rows, chosen, plain, batch, progress)
        found = stated_pooling.projected(found, dense, normalise) if dense else found
        if dimensions is None:
            return found
        if not 0 < dimensions <= found.shape[1]:
            raise UserError(f"dimensions is {dimensions}: this model's vectors have {found.shape[1]}")
        return _unit(found[:, :dimensions]) if normalise else found[:, :dimensions]

    def _encoding(self, edit: edits.Given = ()) -> text_vectors.Encoding:
        """What computes the vectors of texts' tokens."""
        engines = self.engines
        runs = edit != () or engines.choice()[0] == "runtime"
        if isinstance(engines.config, Decoder) and not engines.checkpoint.classifier and runs:
            return _Decoded(engines, edit)
        if isinstance(engines.config, Encoder) and runs:
            return engines.encoder
        model = engines.pytorch_model
        from cutaway.model.token_vectors import TokenVectors

        return TokenVectors(model)

    def _pooling(self, asked: Pooling | None) -> Any:
        """How tokens become a vector: as it was asked for, else as the model's makers chose."""
        checkpoint = self.engines.checkpoint
        if asked is not None and asked not in POOLINGS:
            raise UserError(f"there is no pooling {asked!r}: use {', '.join(POOLINGS)}")
        own = "mean" if isinstance(self.engines.config, Encoder) else None
        chosen = asked or stated_pooling.stated(checkpoint) or own
        if chosen is None:
            raise UserError(
                f"{checkpoint.source} is a decoder, not made to turn texts into vectors: "
                f"say how to pool its tokens, by {', '.join(POOLINGS)}"
            )
        return chosen

    # ---- labels --------------------------------------------------------------------------------------------

    @cached_property
    def classifier(self) -> Classifier | None:
        """The head for labels, for a model that has one."""
        return read_classifier(self.engines.checkpoint)

    @property
    def ranks(self) -> bool:
        """Whether it is a cross-encoder: a classifier of texts with one label."""
        own = self.classifier
        return own is not None and not own.of_tokens and len(own.labels) == 1

    @cached_property
    def inputs(self) -> PairInputs:
        """How it reads texts, and pairs of them together."""
        engines = self.engines
        return PairInputs(engines.checkpoint, engines.config, engines.context, self.get_tokenizer, self.row)

    def classes(
        self,
        texts: Sequence[Text | tuple[str, str]],
        batch: int = 32,
        truncate: bool = False,
        progress: store.Progress = store.silent,
    ) -> Classes:
        """The labels of texts or pairs of texts, as ``LanguageModel.classify`` describes them."""
        if isinstance(texts, str):
            raise UserError("classify takes a list of texts, and this is one: write classify([text])")
        if batch < 1:
            raise UserError(f"a batch of {batch} texts reads nothing: use 1 or more")
        own = self.classifier
        if own is None or own.of_tokens:
            raise UserError(
                f"{self.engines.checkpoint.source} is no classifier of texts: it has no such head"
            )
        found = self._logits(own, texts, truncate, batch, progress)
        return Classes(own.labels, own.problem, found, own.scores(found))

    def token_classes(
        self,
        texts: Sequence[Text],
        batch: int = 32,
        truncate: bool = False,
        progress: store.Progress = store.silent,
    ) -> list[tuple[list[int], Classes]]:
        """The ids of each text and the labels of its tokens."""
        own = self.classifier
        if own is None or not own.of_tokens:
            raise UserError(
                f"{self.engines.checkpoint.source} is no classifier of tokens: it has no such head"
            )
        encoding = self._encoding()
        rows, segments = self.inputs.rows(texts, truncate)
        found = text_vectors.token_logits(encoding, own.head, rows, segments, batch, progress)
        made = (Classes(own.labels, own.problem, one, own.scores(one)) for one in found)
        return list(zip(rows, made, strict=True))

    def scores(
        self, query: str, texts: Sequence[str], batch: int, progress: store.Progress = store.silent
    ) -> np.ndarray:
        """float32 [n]: how well each text fits a query."""
        own = self.classifier
        if own is None or not self.ranks:
            source = self.engines.checkpoint.source
            raise UserError(f"{source} is no cross-encoder: it has no head with one label")
        pairs = [(query, text) for text in texts]
        found = self._logits(own, pairs, False, batch, progress)[:, 0]
        return sigmoid(found) if own.sigmoid else found

    def _logits(
        self,
        own: Classifier,
        texts: Sequence[Text | tuple[str, str]],
        truncate: bool,
        batch: int,
        progress: store.Progress,
    ) -> np.ndarray:
        """float32 [n labels]."""
        encoding = self._encoding()
        rows, segments = self.inputs.rows(texts, truncate)
        if not rows:
            return np.empty((0, len(own.labels)), np.float32)
        if isinstance(self.engines.config, Decoder):
            rows = [list(own.without_padding(row)) for row in rows]
        return np.stack(text_vectors.logits(encoding, own.head, rows, segments, batch, progress))

    # ---- ids -----------------------------------------------------------------------------------------------

    def row(self, i: int, text: Text, truncate: bool) -> list[int]:
        """The ids of text number ``i``, at most as many as the model reads."""
        ids, most, vocab = self.ids(text), self.engines.context, self.engines.config.vocab
        if not ids:
            raise UserError(f"text {i} has no token, so there is nothing to make a vector of")
        if wrong := [id for id in ids if not 0 <= id < vocab]:
            raise UserError(f"text {i} has the id {wrong[0]}, and this model's go from 0 to {vocab - 1}")
        if len(ids) <= most:
            return ids
        if not truncate:
            raise UserError(
                f"text {i} has {len(ids):,} tokens, and this model reads at most {most:,}: "
                "cut it into passages, or have its end cut off by truncate=True"
            )
        end = self._end(ids)
        return [*ids[: most - len(end)], *end] if len(end) < most else ids[:most]

    def _end(self, ids: Sequence[int]) -> Sequence[int]:
        """What the tokenizer has put behind these ids, which stays where a text is cut off."""
        has_tokenizer = self.engines.checkpoint.read_tokenizer is not None
        end = list(self.get_tokenizer().behind) if has_tokenizer else []
        return end if end and list(ids[-len(end) :]) == end else ()


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@dataclass(frozen=True)
class _Decoded:
    """A decoder's last residual stream, normed as the head reads it, by the engine that answers."""

    engines: Engines
    edit: edits.Given
    together = 4096  # tokens whose vectors are held at once
    pads = False

    def encode(
        self, rows: Sequence[Sequence[int]], segments: Sequence[Sequence[int]] | None = None
    ) -> list[np.ndarray]:
        """float32 [t d] of each text."""
        engines, edit = self.engines, self.edit
        last = f"blocks.{len(engines.config.blocks) - 1}.out"
        if engines.choice(edit)[0] == "runtime":
            from cutaway.runtime import values

            made = [engines.edited(edit, ids).hooks for ids in rows]
            stream = values.of_texts(engines.runtime, rows, [last], edits=made)[last]
            stream = Layers(engines.checkpoint.tensors).norm(stream, "norm", engines.config.norm)
            return np.split(stream, np.cumsum([len(ids) for ids in rows])[:-1])
        pytorch = engines.instrumented_pytorch
        import torch

        found = []
        with torch.inference_mode():
            for ids in rows:
                (values,) = pytorch.values([ids], [last], [edit])
                stream = torch.from_numpy(values[last]).to(next(pytorch.model.parameters()))
                found.append(pytorch.model.norm(stream).float().cpu().numpy())
        return found
