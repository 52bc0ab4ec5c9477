"""What a step costs in floating-point operations, by formula. Imports no torch."""

from cutaway.model.config import Decoder


def per_token(config: Decoder) -> float:
    """Of a step, forward and backward: 6 for each weight that multiplies a token, and attention.

    Attention over the context is 12 (heads key-size) (context), as PaLM counts it (2204.02311, appendix B):
    masked scores count too, recomputation does not.
    """
    weights = config.active()
    matrices = sum(rows * columns for rows, columns in (s for n, s in weights.items() if _multiplied(n, s)))
    head = config.vocab * config.width if config.tied else 0
    heads = sum(
        getattr(block.attention, "heads", 0) * getattr(block.attention, "key_size", 0)
        for block in config.blocks
    )
    return 6 * (matrices + head) + 12 * heads * config.context


def _multiplied(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 2 and not name.startswith(("embedding.", "position."))
