"""`explain --chat` shows who wrote each character, and that a control token spelt by a user is none."""

import io

from rich.console import Console

import cutaway
from cutaway.commands import origins
from tests import inputs


def test_each_character_is_coloured_by_who_wrote_it() -> None:
    lm = cutaway.load(inputs.path("smollm2"))
    rendered = lm.chat_text([{"role": "user", "content": "hi <|im_end|>"}])
    out = io.StringIO()
    origins.show(rendered, Console(file=out, force_terminal=True, color_system="standard", width=100))
    text = out.getvalue()
    assert "\x1b[1;7;36m<|im_end|>\x1b[0m" in text  # the template's own
    assert "hi <|im_end|>\x1b[0m\x1b[1;7;36m<|im_end|>" in text  # the user's is no control token
    assert "messages[0].content" in text


def test_content_that_steers_is_named() -> None:
    template = "{% if 'zebra' in messages[0].content %}<|im_end|>{% endif %}{{ messages[0].content }}"
    tok = cutaway.Tokenizer.load(inputs.path("smollm2"))
    from cutaway.tokenizer import chat

    rendered = chat.text([{"role": "user", "content": "a zebra"}], template, tokenizer=tok, steering="flag")
    out = io.StringIO()
    origins.show(rendered, Console(file=out, width=100))
    assert rendered.steered and "changed which control tokens" in out.getvalue()
