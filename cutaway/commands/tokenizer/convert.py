"""`cutaway tokenizer convert`: a tokenizer in another format."""

from pathlib import Path

from cutaway.commands.console import note
from cutaway.commands.options import Force
from cutaway.commands.tokenizer.encode import Pattern
from cutaway.commands.tokenizer_source import opened


def convert(source: str, target: Path, /, *, pattern: Pattern = None, force: Force = False) -> None:
    """Write a tokenizer in the format that TARGET's name says, so that its library gives the same ids.

    .json is Hugging Face's tokenizer.json, .model SentencePiece's, .tiktoken OpenAI's ranks, .gguf
    llama.cpp's metadata, .txt BERT's vocab.txt. What a format cannot say is refused.

    **Examples:**

    cutaway tokenizer convert smollm2 tokenizer.json

    :param source: A file, a folder, or a model's name that has a tokenizer.
    :param target: The file to write.
    """
    tok = opened(source, pattern)
    path = tok.save(target, force=force)
    if path.suffix == ".tiktoken":
        note(f"Note: {path.name} holds ranks alone: give the pattern and special tokens when it is read.")
    print(f"{path}: {len(tok):,} tokens")
