"""A conversation as the ids a chat model reads, in which only the template can write a control token.

`<|im_end|>` typed by a user, returned by a tool or spelt in an argument's name looks, once a conversation is
one text, exactly as the template's own. So the text is rendered with the origin of each character
(provenance.py, template.py, in a process of its own: sandbox.py), control tokens are cut only where one
constant of the template spells them, and everything else is encoded as text, whatever it spells. Benign
conversations come to the ids that the `transformers` library gives them. docs/chat.md says what this
guarantees and what it cannot.
"""

from cutaway.tokenizer.chat.rendering import (
    Rendered,
    Run,
    Vocabulary,
    control_ids,
    encoded,
    has_calls,
    may_be_set,
    prompt_text,
    render,
    text,
)

__all__ = [
    "Rendered",
    "Run",
    "Vocabulary",
    "control_ids",
    "encoded",
    "has_calls",
    "may_be_set",
    "prompt_text",
    "render",
    "text",
]
