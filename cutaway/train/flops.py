"""What a step costs in floating-point operations, by formula. Imports no torch."""

from collections.abc import Iterable, Mapping
from typing import Any

from cutaway.model.config import Decoder, EncoderDecoder


def per_token(config: Decoder | EncoderDecoder) -> float:
    """Of a step, forward and backward: 6 for each weight that multiplies a token, and attention.

    Attention over the context is 12 (heads key-size) (context), as PaLM counts it (2204.02311, appendix B):
    masked scores count too, recomputation does not. Of an encoder-decoder it is the mean over the tokens of a
    source and of a target that fill both contexts.
    """
    if isinstance(config, EncoderDecoder):
        return _per_token_of_both(config)
    own = 6 * (_matrices(config.active()) + _tied_head(config))
    return own + 12 * _heads(block.attention for block in config.blocks) * config.context


def _per_token_of_both(config: EncoderDecoder) -> float:
    """Cross-attention's keys and values are the source's, its queries the target's."""
    reader, writer = config.encoder, config.decoder
    source, target = reader.context, writer.context
    weights = writer.weights()
    of_source = {
        name: shape for name, shape in weights.items() if ".cross.key." in name or ".cross.value." in name
    }
    reading = 6 * (_matrices(reader.weights()) + _matrices(of_source))
    reading += 12 * _heads(block.attention for block in reader.blocks) * source
    writing = 6 * (_matrices(weights) - _matrices(of_source) + _tied_head(writer))
    writing += 12 * _heads(block.attention for block in writer.blocks) * target
    writing += 12 * _heads(block.cross for block in writer.blocks) * source
    return (source * reading + target * writing) / (source + target)


def _matrices(weights: Mapping[str, tuple[int, ...]]) -> int:
    """How many weights multiply a token."""
    return sum(rows * columns for rows, columns in (s for n, s in weights.items() if _multiplied(n, s)))


def _tied_head(config: Decoder) -> int:
    """A head's weights that are counted as an embedding table otherwise."""
    return config.vocab * config.width if config.tied else 0


def _heads(mixers: Iterable[Any]) -> int:
    """The numbers of all heads' queries over these layers."""
    return sum(getattr(mixer, "heads", 0) * getattr(mixer, "key_size", 0) for mixer in mixers)


def _multiplied(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and not name.startswith(("embedding.", "position."))
