"""The helper process in which chat templates run: programs that come with downloaded models."""

import base64
import json
import zlib
from collections import OrderedDict
from typing import TYPE_CHECKING

from cutaway.helper import Bounds, Helper

if TYPE_CHECKING:
    from cutaway.tokenizer.chat import template

# Real templates compute for a millisecond. On a machine too busy to give it the seconds, the clock decides.
BOUNDS = Bounds(seconds=0.4, memory=192 << 20, seconds_per_byte=1e-6, memory_per_byte=64)
WAIT_SECONDS = 5.0
PROGRAMS = 64  # compiled templates a helper remembers

helper = Helper("cutaway.tokenizer.chat.sandbox", "the chat template", BOUNDS, WAIT_SECONDS, more=2)
_programs: "OrderedDict[str, template.Program]" = OrderedDict()


def load() -> None:
    """Import what templates need."""
    from cutaway.tokenizer.chat import template  # noqa: F401


def answer(request: dict) -> dict:
    """To {template, names, contexts}: the constants, each context's text and origins, or why not."""
    from cutaway.tokenizer.chat import template

    try:
        key = json.dumps([request["template"], request["names"]])
        program = _programs.pop(key, None) or template.Program(request["template"], request["names"])
        _programs[key] = program
        if len(_programs) > PROGRAMS:
            _programs.popitem(last=False)
        rendered = [_rendered(program, context) for context in request["contexts"]]
        return {"rendered": rendered, "source": program.source, "own": program.own}
    except MemoryError:
        raise
    except Exception as error:
        return {"refused": template.reason(error)}


def _rendered(program: "template.Program", context: dict) -> dict:
    from cutaway.tokenizer.chat import template

    try:
        text = program.render(context)
    except MemoryError:
        raise
    except Exception as error:
        return {"refused": template.reason(error)}
    # Long stretches of one origin: packed they are read in no time, and without holding up other threads.
    return {"text": text, "origins": base64.b64encode(zlib.compress(text._o.tobytes(), 1)).decode()}
