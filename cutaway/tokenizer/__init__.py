"""Text to ids and back."""

from cutaway.tokenizer.tokenizer import Tokenizer

__all__ = ["Tokenizer"]
