"""`cutaway VERB ...`: imports that verb alone, and turns what goes wrong into a sentence and an exit code.

The overview and the version are printed without the argument parser, so that they cost no more than Python's
own start.
"""

import contextlib
import difflib
import gc
import os
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import cutaway
from cutaway import extras
from cutaway.commands import progress, terminal
from cutaway.errors import OperationalError, UserError

VERBS = {
    "On files": {
        "pull": "Fetch a model into the cache.",
        "models": "List what is in the cache, or remove it.",
        "doctor": "Check this installation: what is wrong, what would be faster.",
        "info": "Print a model's card: sizes, parameters, weight types, memory.",
        "convert": "Write a model as safetensors or GGUF.",
        "merge": "Write an adapter's model, or a soup of several, as one model.",
        "quantize": "Write a model with small weights, and say what that costs.",
        "tokenizer": "Encode, decode, look into, compare, convert, train tokenizers.",
        "verify": "Compare a model with independent engines, layer by layer.",
        "embed": "Train word vectors, and walk around in them or in a model's own.",
        "bundle": "Write one file with a model, adapter, template, tools, documents.",
    },
    "With a model": {
        "generate": "Continue a text.",
        "chat": "Talk with a model.",
        "detect": "Tell whether a text has a watermark.",
        "explain": "Follow a sentence through a model, step by step.",
        "graph": "Draw which parts of a model made its next token.",
        "activations": "Keep what a model computes on many texts.",
        "attention": "List the attention mechanisms and their cost, or draw who sees whom.",
        "run": "Open what `bundle` wrote, in chat or behind the API.",
        "serve": "Answer programs: OpenAI's API, and what is inside.",
        "open": "Open a model's page in the browser: chat, and what is inside.",
        "eval": "Measure what a model can do, with error bars.",
        "arena": "Let models answer the same prompts, and rate them.",
        "bench": "Measure how fast a model runs here, and what limits it.",
    },
    "To make one": {
        "pretrain": "Train a model from text.",
        "finetune": "Train a model further, on conversations.",
        "lens": "Fit a Jacobian lens: which words each layer moves a model towards.",
        "sae": "Train a sparse autoencoder on kept activations.",
        "compare": "Train one model with one part swapped, and say what separated.",
        "scale": "Train a ladder of sizes, and fit the scaling law.",
        "plan": "Say what training it needs on so many devices.",
        "pipeline": "Go from text to an assistant in one run, with a report card.",
    },
    "To learn": {
        "course": "Nine chapters, with exercises that are checked on this machine.",
    },
    "To test one": {
        "attack": "Attack it with harmless canaries, and see why what worked did.",
        "audit": "Look for what is wrong with a model's files, without running it.",
    },
}
FREE_OPTIONS = {
    "pretrain",
    "finetune",
}  # takes a config's entries as options, and names a mistyped one itself
ELSEWHERE = {  # what other programs call it, and what does it here
    "list": "`cutaway models` lists what is in the cache",
    "ls": "`cutaway models` lists what is in the cache",
    "rm": "`cutaway models --remove NAME` deletes a model from the cache",
    "remove": "`cutaway models --remove NAME` deletes a model from the cache",
    "ps": "a running `cutaway serve` tells its models at /api/ps and /v1/models",
    "stop": "Ctrl-C ends a running `cutaway serve`",
    "start": "`cutaway serve` answers programs",
    "show": "`cutaway info NAME` prints a model's card",
    "create": "`cutaway bundle` writes a model with its template, tools and documents as one file",
    "download": "`cutaway pull NAME` fetches a model",
    "cli": "`cutaway chat` talks with a model, `cutaway generate` continues a text",
    "server": "`cutaway serve` answers programs",
    "train": "`cutaway pretrain` trains a model from text, `cutaway finetune` trains one further",
    "version": "`cutaway --version` prints it",
    "perplexity": "`cutaway eval NAME --tasks text:FILE` measures it",
}
SHORT = {"-m": "--model", "-n": "--max-tokens", "-t": "--threads", "-c": "--context", "-s": "--seed"}
SHORT |= {
    "-f": "--file",
    "-o": "--output",
    "-l": "--limit",
    "--temp": "--temperature",
    "--ctx-size": "--context",
}
USER, FAILURE, INTERRUPTED, BROKEN_PIPE = 2, 1, 130, 141


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code is 0, 1 for a failure, 2 for a user's mistake, 130 for Ctrl-C."""
    warnings.formatwarning = lambda message, *_, **__: f"cutaway: {message}\n"
    _share_processors()
    with terminal.guarded():
        return _code(sys.argv[1:] if arguments is None else list(arguments))


def _share_processors() -> None:
    """Let a thread of PyTorch's that is done sleep soon, unless the user decided how it waits.

    GCC's OpenMP reads this once, when PyTorch is imported. By its own default, a thread that waits for the
    others spins for so long that beside one busy program a training step takes 25 times as long
    (docs/results/training.md).
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def _code(arguments: list[str]) -> int:
    try:
        code = _run(arguments)
        sys.stdout.flush()  # a reader that went away is noticed here, not when Python shuts down
        return code
    except (UserError, OperationalError) as problem:
        return _complain(str(problem), USER if isinstance(problem, UserError) else FAILURE)
    except ImportError as problem:
        if problem.name in extras.EXTRAS:  # what an extra of the installation brings
            what = f"`{' '.join(['cutaway', *arguments[:1]])}` with these options"
            return _complain(extras.sentence(what, problem.name), USER)
        if lacking := sorted(name for name, (_, _, extra) in extras.complete()[1].items() if not extra):
            wrong = f"Cutaway's own libraries are absent or too old here ({', '.join(lacking)})"
            return _complain(f"{wrong}: {extras.install()} --upgrade", FAILURE)
        if (reason := _unloadable(problem)) is None:
            raise
        remedy = "install what is named with the system's packages (libstdc++.so.6 is Debian's libstdc++6)"
        return _complain(f"a compiled library cannot be loaded ({reason}): {remedy}", FAILURE)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return BROKEN_PIPE
    except OSError as problem:
        if problem.filename is not None:
            absent = isinstance(problem, FileNotFoundError)
            return _complain(f"{problem.filename}: {problem.strerror}", USER if absent else FAILURE)
        _discard_output()
        return _complain(f"standard output cannot be written: {problem.strerror or problem}", FAILURE)


def _unloadable(problem: BaseException) -> str | None:
    """What the system's loader has against a compiled library, such as numpy's; None for another problem."""
    cause: BaseException | None = problem
    while cause is not None:
        for phrase in ("cannot open shared object file", "DLL load failed", "' not found (required by"):
            if phrase in str(cause) and "\n" not in str(cause):
                return str(cause)
        cause = cause.__cause__ or cause.__context__
    return None


def _discard_output() -> None:
    """Send what standard output still holds to nowhere, so that Python's shutdown does not fail on it."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["help"] and len(arguments) > 1:
        arguments = [*arguments[1:], "--help"]
    if not arguments or arguments[0] in ("--help", "-h", "help"):
        print(overview())
        return 0
    if arguments[0] in ("--version", "-V"):
        print(_versions())
        return 0
    known = [verb for verbs in VERBS.values() for verb in verbs]
    if arguments[0] == "--install-completion":  # for the shell of $SHELL: bash, zsh or fish
        print(_parser(*known).install_completion(add_to_startup=True))
        return 0
    if arguments[0] not in known:
        raise UserError(_unknown(arguments[0], known))
    return _verb(arguments[0], arguments[1:])


def _versions() -> str:
    """The package, its native core, the instruction set, and the extras that are installed whole."""
    from cutaway.native import library

    core = f"native core {library.ABI}, {library.isa()}"
    core = core if library.unavailable_reason() is None else "no native core"
    whole = ", ".join(sorted(extras.complete()[0])) or "none"
    return f"cutaway {cutaway.__version__} ({core}; extras: {whole})"


def _verb(name: str, arguments: list[str]) -> int:
    """Parse the verb's own arguments by its function's signature, and call it."""
    if name == "tokenizer":
        from cutaway.commands.quick_encode import quick

        if quick(arguments):
            return 0
    import cyclopts

    gc.set_threshold(50_000)  # what is imported stays: looking through it again and again delays the start
    app = _parser(name, helps=not arguments or bool({"--help", "-h"} & set(arguments)))
    if name == "serve":
        from cutaway.commands.serve_options import sources

        app.config = sources(arguments)
    try:
        if name not in FREE_OPTIONS:
            _check_options(app, name, arguments)
        with progress.started() as begins:
            given = [name, *arguments]
            command, bound, _ = app.parse_args(given, exit_on_error=False, print_error=False)
            if command.__name__ != "help_print":
                begins(f"cutaway {name} is at work: {_about(command)}")
            command(*bound.args, **bound.kwargs)
    except cyclopts.CycloptsError as problem:
        sentence = " ".join(str(problem).split()).rstrip(".")
        sentence = sentence if len(sentence) < 600 else f"{sentence[:500]}...{sentence[-60:]}"
        if isinstance(problem, cyclopts.UnusedCliTokensError):
            sentence = f"It takes no more words: {' '.join(map(repr, problem.unused_tokens or ()))}"
        verb = " ".join(problem.command_chain or (name,))
        if isinstance(problem, cyclopts.MissingArgumentError) and problem.argument is not None:
            return _complain(_missing(app, verb, problem.argument), USER)
        return _complain(f"{sentence} (`cutaway {verb} --help` shows examples)", USER)
    return 0


def _about(command: Any) -> str:
    """What a command does, by its docstring's first words."""
    first = " ".join((command.__doc__ or "").partition("\n\n")[0].split())
    about = re.split(r"[:.](?: |$)", first)[0]
    return about[:1].lower() + about[1:]


def _missing(app: Any, verb: str, argument: Any) -> str:
    """What a verb needs, and its first example that has it."""
    for word in verb.split():
        app = app[word]
    option = argument.name if argument.field_info.is_keyword_only else ""
    what = option or argument.name.removeprefix("--").upper()
    about = " ".join((argument.parameter.help or "").split()).partition(". ")[0].rstrip(".")
    documented = app.default_command.__doc__ or ""
    examples = re.findall(r"^ *(cutaway .+)$", documented, re.MULTILINE)
    example = next((one for one in examples if option in one), f"cutaway {verb} --help")
    name = argument.name.lstrip("-").lower()
    if not about and (own := re.search(rf":param {name}: ((?:[^.:;]|\.(?=\d))+)", documented)):
        about = " ".join(own[1].split())
    about = f" ({about[0].lower()}{about[1:]})" if about[1:2].islower() or about[:2] == "A " else ""
    return f"{verb} needs {what}{about}: {example}"


def _parser(*names: str, helps: bool = False) -> Any:
    """The argument parser of these verbs; ``helps`` where it may print help, which takes time to import."""
    import cyclopts

    from cutaway.commands.options import converted

    formatter: Any = "default" if sys.stdout.isatty() else "plain"
    if helps and formatter == "plain":
        from cutaway.commands.plain_help import PlainHelp

        formatter = PlainHelp()
    app = cyclopts.App(
        name="cutaway",
        version_flags=(),
        help_format="markdown",
        console=terminal.screen() if sys.stdout.isatty() else None,
        help_formatter=formatter,
        default_parameter=cyclopts.Parameter(show_default=_default, converter=converted),
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for name in names:
        app.command(f"cutaway.commands.{name}:{name}", name=name)
    return app


def _check_options(app: Any, name: str, arguments: list[str]) -> None:
    """UserError for a mistyped option, which a verb that takes a text would read as its text."""
    command, words = app[name], list(arguments)
    while words and not words[0].startswith("-") and words[0] in command:
        command = command[words.pop(0)]
        command.help = None  # its own docstring, not the line that lists it
    if command.default_command is None:
        return
    options = {"--help": bool}
    options |= {known: one.hint for one in command.assemble_argument_collection() for known in one.names}
    takes_value = False
    for word in words[: words.index("--") if "--" in words else None]:
        option = word.partition("=")[0].replace("_", "-")
        if not takes_value and option not in options and SHORT.get(option) in options:
            raise UserError(f"There is no option {option} in `cutaway {name}`: write {SHORT[option]}")
        if not takes_value and option.startswith("--") and option not in options:
            near = difflib.get_close_matches(option, options, n=1, cutoff=0.7)
            if near:
                verb = " ".join((name, *arguments[: len(arguments) - len(words)]))
                raise UserError(f"There is no option {option} in `cutaway {verb}`: did you mean {near[0]}?")
        takes_value = "=" not in word and options.get(option, bool) is not bool


def _default(value: object) -> str | None:
    """How help shows a default: what is off, empty or left to the verb is not worth words."""
    shown = ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)
    return None if value in (None, False, ()) else shown or None


def overview() -> str:
    """What `cutaway --help` prints."""
    lines = [
        "Usage: cutaway VERB ...",
        "",
        "A large language model with its side open: run it, watch it, convert it.",
    ]
    for group, verbs in VERBS.items():
        lines += ["", f"{group}:", *(f"  {verb:<9} {about}" for verb, about in verbs.items())]
    return "\n".join(
        [
            *lines,
            "",
            "Examples:",
            '  cutaway explain "The capital of France is"',
            '  cutaway generate "Once upon a time" --max-tokens 50',
            "",
            "`cutaway VERB --help` lists a verb's options, `cutaway --version` the version;",
            "`cutaway --install-completion` completes both in bash, zsh and fish.",
        ]
    )


def _unknown(verb: str, known: list[str]) -> str:
    if verb.startswith("-"):
        return f"the verb comes first (`cutaway chat MODEL`), and {verb} is none: `cutaway --help` lists them"
    if verb in ELSEWHERE:
        return f"there is no verb {verb}: {ELSEWHERE[verb]}"
    near = difflib.get_close_matches(verb, known, n=1)
    guess = f"did you mean `cutaway {near[0]}`? " if near else ""
    return f"there is no verb {verb}: {guess}`cutaway --help` lists them"


def _complain(sentence: str, code: int) -> int:
    """Say it on standard error; CUTAWAY_DEBUG shows where it came from."""
    if os.environ.get("CUTAWAY_DEBUG"):
        import traceback

        traceback.print_exc()
    terminal.note(f"cutaway: {sentence}")
    return code
