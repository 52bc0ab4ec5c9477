"""Options that several verbs have, each with its help."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import cyclopts
from cyclopts import Parameter

from cutaway.commands.console import any_case

Flag = Annotated[bool, Parameter(negative=())]
Words = Annotated[tuple[str, ...], Parameter(negative=())]  # given again for more
Json = Annotated[bool, Parameter(name="--json", help="Print one JSON document.", negative=())]
Force = Annotated[bool, Parameter(help="Replace the output if it exists.", negative=())]
Open = Annotated[bool, Parameter(name="--open", help="Open the page in the browser.", negative=())]
Html = Annotated[Path | None, Parameter(help="Write a page with plots here.")]
Svg = Annotated[Path | None, Parameter(name="--svg", help="Write each plot as an SVG file into this folder.")]
Model = Annotated[str, Parameter(help="A model's name, a .gguf file or a folder.")]
Engine = Annotated[
    Literal["auto", "pytorch", "runtime"],
    Parameter(help="The PyTorch model (pytorch), the runtime (packed weights, CPU), or the fastest here."),
]
Adapter = Annotated[Path | None, Parameter(help="A PEFT adapter's folder, such as a `cutaway finetune` run.")]
Threads = Annotated[int | None, Parameter(help="Processor threads to use; all of this machine's by default.")]
KVCache = Annotated[
    Literal["F16", "Q8_0", "Q4_0"],
    Parameter(
        converter=any_case("F16", "Q8_0", "Q4_0"),
        help="What the runtime keeps keys and values as: Q8_0 takes half, Q4_0 a quarter.",
    ),
]
Draft = Annotated[
    str | None,
    Parameter(
        help="Draft tokens ahead, of which the model verifies several in one reading: by `lookup` in earlier "
        "text, which may repeat itself, by the model's own heads (`mtp`), by an EAGLE-3 head (its folder), "
        "or by a smaller model of the same vocabulary. The text is the same."
    ),
]
OWN_DRAFTS = ("lookup", "mtp")  # drafts that need no file
PrefixCache = Annotated[
    Path | None,
    Parameter(
        help="Keep the pages of long prompts in this folder (`default`: in Cutaway's cache), for later runs "
        "with the same model. Prompts can be worked out from them."
    ),
]
PrefixCacheSize = Annotated[
    str, Parameter(help="What that folder may take; the least recently used pages go first.")
]
PrefixCacheKeyFile = Annotated[
    Path | None,
    Parameter(
        help="A file with the key that these pages are encrypted by, of at least 32 bytes; "
        "CUTAWAY_PREFIX_CACHE_KEY has it otherwise."
    ),
]
Context = Annotated[
    int | None,
    Parameter(
        help="Hold this many tokens at most, to take less memory; more than the model was made for are read "
        "on as transformers does, with a warning."
    ),
]
Strict = Annotated[
    bool,
    Parameter(
        help="Refuse a config.json with keys that no such model reads; else they are warned of.", negative=()
    ),
]


def converted(hint: Any, tokens: Any) -> Any:
    """An argument's value. Where a whole number is asked for, 3.5 is refused instead of rounded."""
    if int in (hint, *get_args(hint)) and float not in get_args(hint):
        for token in tokens:
            if not re.fullmatch(r"[+-]?\d[\d_]*|0[xob][0-9a-f_]+", token.value.strip(), re.I):
                raise ValueError(f"{token.value!r} is not a whole number")
    return cyclopts.convert(hint, tokens)
