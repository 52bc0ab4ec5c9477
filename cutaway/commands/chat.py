"""`cutaway chat`: talk with a model. Lines of standard input are questions, or commands behind a slash."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import cutaway
from cutaway.commands import chat_pages, prefixes
from cutaway.commands.chat_tools import NO_TOOLS, ToolOptions, checked, shown
from cutaway.commands.console import model_path, note, note_fallback, read_text, use_threads
from cutaway.commands.generate import NOTHING_GIVEN, Sampling, drafted, drafts, note_ending
from cutaway.commands.options import Adapter, Context, Draft, Engine, Flag, KVCache, Model, Strict, Threads
from cutaway.commands.progress import reading
from cutaway.commands.steer import Steer, steered
from cutaway.errors import OperationalError, UserError, quoted
from cutaway.generate.batch.request import ContextFullError, Generation, Piece
from cutaway.generate.sampling_params import SamplingParams
from cutaway.store import files

# Where the model brings no temperature of its own. Without the penalty small models repeat themselves until
# the context is full (docs/results/spine.md).
DEFAULTS: dict[str, Any] = {"temperature": 0.2, "top_p": 0.9, "repetition_penalty": 1.1}
MAX_TOKENS = 1024  # of an answer
WAYS_OUT = "/clear starts anew, /undo takes back the last question and answer."
NO_SYSTEM = "No system message is set; the model's template may add one of its own. /system TEXT sets one."


def chat(
    model: Model = "smollm2",
    *,
    system: str | None = None,
    load: Path | None = None,
    save: Path | None = None,
    allow_steering: Flag = False,
    adapter: Adapter = None,
    chat_template: Path | None = None,
    engine: Engine = "auto",
    threads: Threads = None,
    context: Context = None,
    strict: Strict = False,
    kv_cache: KVCache = "F16",
    draft: Draft = None,
    steer: Steer = (),
    sampling: Sampling = NOTHING_GIVEN,
    tools: ToolOptions = NO_TOOLS,
) -> None:
    """Talk with a model. /help lists the commands.

    Samples by the options, else by the model's generation_config, else at temperature 0.2 with top-p 0.9 and
    repetition penalty 1.1 (1 switches it off). An answer ends after 1,024 tokens unless --max-tokens says
    otherwise. Ctrl-C stops the answer, Ctrl-D ends. Lines piped in are questions, answered one after another.
    A call of a tool is shown and asked about before it runs (docs/tools.md).

    **Examples:**

    cutaway chat --system "You answer in one sentence."

    cutaway chat my-model.gguf --threads 4

    cutaway chat --temperature 0 --load conversation.json

    cutaway chat --save talk.json

    echo "What is a monad?" | cutaway chat

    cutaway chat --tools calculator,python,search --root ~/notes

    :param system: The system message: who the model is to be.
    :param load: Go on with a conversation that /save or --save wrote.
    :param save: Write the conversation to this file after each answer, and at the end its KV cache beside it
        (FILE.kv), so that --load FILE need not read it. CUTAWAY_PREFIX_CACHE_KEY encrypts that file.
    :param chat_template: A file with a chat template, in place of the model's own.
    :param allow_steering: Let the conversation change which control tokens the template writes.
    """
    conversation = Conversation.read(load) if load else Conversation()
    if save is not None:
        files.check_file(save, force=load is not None and save.resolve() == load.resolve())
        prefixes.seal(None)  # a key that is too short is an error before the talk
    if system is not None:
        conversation.system = system
    given = sampling.given()
    SamplingParams(**DEFAULTS | given)  # refused before anything is loaded
    checked(tools)
    if tools.given and allow_steering:
        raise UserError("--allow-steering and tools exclude each other: results are strangers' text")
    if save is not None and (tools.given or steer):
        raise UserError(
            "--save keeps a KV cache, which tools and --steer do not leave: /save writes the text"
        )
    if tools.given and steer:
        raise UserError("--steer and tools exclude each other: tools keep a KV cache, which edits do not")
    use_threads(threads)
    lm: Any = cutaway.load(
        model_path(model), engine=engine, context=context, adapter=adapter, kv_cache=kv_cache, strict=strict
    )
    if chat_template is not None:
        lm.checkpoint = replace(lm.checkpoint, chat_template=read_text(chat_template))
    if lm.checkpoint.chat_template is None:
        raise UserError(
            f"{model} has no chat template, so it cannot chat: continue a text with "
            f'`cutaway generate "..." --model {model}`'
        )
    lm = steered(lm, steer)
    note_fallback(lm)
    steering = {"steering": "flag"} if allow_steering else {}
    options = defaults(lm) | given
    drafting = {} if draft is None else {"speculate": drafts(draft, engine, strict)}
    with tools.agent(lm, None, options | drafting) if tools.given else contextlib.nullcontext() as agent:
        _talk(Talk(lm, conversation, options | steering, agent, drafting, bool(steer), save), model, load)


def _talk(talk: "Talk", model: str, load: Path | None) -> None:
    """Say how the talk goes, have it, and save it where that was asked for."""
    options, conversation = talk.options, talk.conversation
    if sys.stdin.isatty():
        note(", ".join(f"{name.replace('_', ' ')} {value}" for name, value in options.items()))
        note(f"{model}: /help lists the commands, Ctrl-C stops an answer, Ctrl-D ends.")
    if load:
        note(f"Going on after {2 * len(conversation.turns)} messages from {load}.")
        if talk.session is not None:
            chat_pages.load(talk.lm, talk.session, load)
    try:
        talk.run(_lines())
    finally:
        talk.save_all()
        if talk.drafting and talk.written:
            note(drafted(talk.drafted, talk.accepted, f"the answers have {talk.written:,}"))


@dataclass(frozen=True)
class Turn:
    """A question and its answer, and between them calls; stopped if Ctrl-C cut the answer off."""

    question: str
    answer: str
    stopped: bool = False
    steps: tuple[dict[str, Any], ...] = ()  # messages with calls and their results


class Conversation:
    """The system message and the turns so far."""

    def __init__(self) -> None:
        self.system: str | None = None
        self.turns: list[Turn] = []

    def messages(self, question: str) -> list[dict[str, Any]]:
        """What the model is to see, ending with a new question."""
        seen: list[dict[str, Any]] = []
        if self.system is not None:
            seen.append({"role": "system", "content": self.system})
        for turn in self.turns:
            seen += [
                {"role": "user", "content": turn.question},
                *turn.steps,
                {"role": "assistant", "content": turn.answer},
            ]
        return [*seen, {"role": "user", "content": question}]

    def save(self, path: Path, force: bool) -> int:
        """Write the messages as a JSON list, whole or not at all; returns how many.

        UserError if the file exists, unless `force`.
        """
        messages: list[dict[str, Any]] = list(self.messages(""))[:-1]
        answers = (each for each in messages if each["role"] == "assistant" and "tool_calls" not in each)
        for message, turn in zip(answers, self.turns, strict=True):
            if turn.stopped:
                message["stopped"] = True
        files.write_file(path, json.dumps(messages, ensure_ascii=False, indent=2) + "\n", force=force)
        return len(messages)

    @classmethod
    def read(cls, path: Path) -> "Conversation":
        """A conversation that `save` wrote; UserError says which message does not fit."""
        try:
            messages = json.loads(read_text(path))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is not JSON: {error}") from None
        messages, steps = _without_steps(messages, path)
        conversation = cls()
        contents = [_content(messages, at, path) for at in range(_count(messages, path))]
        if contents and messages[0]["role"] == "system":
            conversation.system = contents.pop(0)
        pairs = zip(contents[::2], contents[1::2], strict=True)
        stopped = [message.get("stopped") is True for message in messages if message["role"] == "assistant"]
        begins = int(conversation.system is not None)
        conversation.turns = [
            Turn(*pair, cut, tuple(steps.get(begins + 2 * n + 1, ())))
            for n, (pair, cut) in enumerate(zip(pairs, stopped, strict=True))
        ]
        return conversation


class Talk:
    """Reads lines, answers questions, obeys commands."""

    def __init__(
        self,
        lm: Any,
        conversation: Conversation,
        options: dict[str, Any],
        agent: Any = None,
        drafting: Mapping[str, Any] = MappingProxyType({}),
        edited: bool = False,
        saved_to: Path | None = None,  # after each answer
    ) -> None:
        self.lm = lm
        self.agent = agent
        self.session = None if edited else lm.session()  # of an edited model no KV cache is kept
        self.conversation = conversation
        self.options, self.drafting, self.saved_to = options, drafting, saved_to
        self.ended = False
        self.failures = 0
        self.written = self.drafted = self.accepted = 0  # tokens of all answers that were not stopped
        self.commands: dict[str, tuple[Callable[[str], None], str]] = {
            "system": (self.system, "/system TEXT   set the system message; alone, show it"),
            "save": (
                self.save,
                "/save FILE     write the conversation as JSON, for --load FILE; --force FILE replaces it",
            ),
            "undo": (self.undo, "/undo          take back the last question and answer"),
            "clear": (self.clear, "/clear         forget the conversation, keep the system message"),
            "help": (self.help, "/help          this list; a question that begins with / is asked with //"),
            "exit": (self.exit, "/exit          end (or /quit, /bye, Ctrl-D)"),
        }

    def run(self, lines: Iterator[str]) -> None:
        """Handle lines until they or the talk end."""
        for line in lines:
            try:
                self.handle(line)
            except (UserError, OperationalError) as error:
                note(str(error))
                self.failures += 1
            if self.ended:
                break
        if self.failures and not sys.stdin.isatty():  # piped in: the exit code is all that a program sees
            raise UserError(f"{self.failures} of the lines could not be answered")

    def save_all(self) -> None:
        """At the end, with --save: write the conversation and its KV cache."""
        if self.saved_to is None:
            return
        chat_pages.beside(self.saved_to).unlink(missing_ok=True)
        if self.conversation.turns:
            self.conversation.save(self.saved_to, force=True)
            steering = {name: self.options[name] for name in ("steering",) if name in self.options}
            ids = self.lm.chat_ids(self.conversation.messages(""), **steering)
            chat_pages.save(self.lm, self.session, ids, self.saved_to)
        elif self.saved_to.exists():  # what was saved was forgotten since
            self.conversation.save(self.saved_to, force=True)

    def handle(self, line: str) -> None:
        """Obey a command or answer a question."""
        line = line.strip()
        if not line:
            return
        if not line.startswith("/") or line.startswith("//"):
            self.answer(line.removeprefix("/") if line.startswith("//") else line)
            return
        name, _, text = line[1:].partition(" ")
        name = "exit" if name in ("quit", "bye") else name
        if name not in self.commands:
            note(f"There is no command /{name}: /help lists them.")
            return
        self.commands[name][0](text.strip())

    def answer(self, question: str) -> None:
        """Stream the answer to standard output and remember it; Ctrl-C keeps the part that was written."""
        written: list[str] = []
        done: Generation | None = None
        steps: tuple[dict[str, Any], ...] = ()
        stopped = False
        messages = self.conversation.messages(question)
        try:
            with reading("Reading the conversation", self._read):
                for piece in self._pieces(messages):
                    if not isinstance(piece, Piece):  # an agent's whole answer
                        written, done, steps = [piece.text], piece.generation, piece.messages[:-1]
                        continue
                    written.append(piece.text)
                    done = piece.generation
                    sys.stdout.write(piece.text)
                    sys.stdout.flush()
        except KeyboardInterrupt:
            stopped = True
        except ContextFullError as full:
            raise UserError(f"{full}. {WAYS_OUT}") from None
        print(flush=True)
        self._remember(Turn(question, "".join(written), stopped, steps), done)

    def _pieces(self, messages: list[dict[str, Any]]) -> Iterator[Any]:
        """The answer's pieces, and of an agent its whole Answer last."""
        if self.agent is None:
            yield from self.lm.chat_stream(messages, session=self.session, **self.options, **self.drafting)
            return
        from cutaway.agent.loop import Answer, ToolResult

        for event in self.agent.stream(messages):
            if isinstance(event, str):
                yield Piece(event)
            elif isinstance(event, ToolResult):
                note(shown(event.text))
            elif isinstance(event, Answer):
                yield event

    def _read(self) -> tuple[int, int | None]:
        """How many tokens of the conversation are read, and how many there are; None where none is known."""
        session = self.session if self.agent is None else self.agent.session
        return (0, None) if session is None else session.reading

    def _remember(self, turn: Turn, done: Generation | None) -> None:
        if done is not None:
            self.written += len(done.ids)
            self.drafted += done.timings.drafted_tokens
            self.accepted += done.timings.accepted_tokens
        if turn.stopped and not turn.answer:
            note("[stopped before the first word; the question is forgotten]")
            return
        self.conversation.turns.append(turn)
        if self.saved_to is not None:
            self.conversation.save(self.saved_to, force=True)
        if turn.stopped:
            note("[stopped; what was written is kept]")
        if done is not None and done.finish_reason == "length":
            note(f"[stopped at {self.options['max_tokens']:,} tokens; --max-tokens sets the limit]")
        if done is not None and done.finish_reason == "context":
            note_ending(done)
            note(WAYS_OUT)

    def system(self, text: str) -> None:
        if text:
            self.conversation.system = text
        system = self.conversation.system
        note(f"System message: {system}" if system else NO_SYSTEM)

    def save(self, text: str) -> None:
        name = text.removeprefix("--force ").strip()
        if not name:
            raise UserError("/save needs a file's name: /save conversation.json")
        path = Path(name).expanduser()
        note(f"Saved {self.conversation.save(path, name != text)} messages to {path}.")

    def undo(self, _: str) -> None:
        if not self.conversation.turns:
            note("There is nothing to take back.")
            return
        note(f"Taken back: {self.conversation.turns.pop().question}")

    def clear(self, _: str) -> None:
        self.conversation.turns.clear()
        note("The conversation is forgotten.")

    def help(self, _: str) -> None:
        note("\n".join(usage for _, usage in self.commands.values()))

    def exit(self, _: str) -> None:
        self.ended = True


def defaults(lm: Any) -> dict[str, Any]:
    """The sampling settings of the model's generation_config, over ours where it has no temperature."""
    known = {option.name for option in fields(SamplingParams)}
    advice = {name: value for name, value in lm.checkpoint.defaults.items() if name in known}
    return {"max_tokens": MAX_TOKENS} | (advice if "temperature" in advice else DEFAULTS | advice)


def _lines() -> Iterator[str]:
    """Lines of standard input; on a terminal edited, recalled with the arrow keys, and pasted whole."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    with contextlib.suppress(ImportError):  # not everywhere; input() then has no editing
        import readline

        readline.parse_and_bind("set enable-bracketed-paste on")
    while not _ended():
        try:
            yield input("> ")
        except EOFError:
            break
        except KeyboardInterrupt:
            note("\n(Ctrl-D or /exit ends)")
    print()


def _ended() -> bool:
    """Whether Ctrl-D alone was typed while an answer was written: `readline` would not take it for an end.

    The terminal then says that it can be read, and that no character is there.
    """
    try:
        import fcntl
        import select
        import termios

        if select.select([sys.stdin], [], [], 0)[0]:
            return not any(fcntl.ioctl(sys.stdin, termios.FIONREAD, bytes(4)))
    except (ImportError, OSError):  # another kind of terminal, or none any more
        pass
    return False


def _count(messages: Any, path: Path) -> int:
    if not isinstance(messages, list):
        raise UserError(f"{path} holds no list of messages: use a file that /save wrote")
    return len(messages)


def _without_steps(messages: Any, path: Path) -> tuple[Any, dict[int, list[Any]]]:
    """Questions and answers, and the calls and results before an answer, by its place among these."""
    steps: dict[int, list[Any]] = {}
    plain: list[Any] = []
    for at in range(_count(messages, path)):
        message = messages[at]
        if not isinstance(message, dict) or not (message.get("role") == "tool" or "tool_calls" in message):
            plain.append(message)
        elif not plain or not isinstance(plain[-1], dict) or plain[-1].get("role") != "user":
            raise UserError(f"Message {at + 1} of {path} is a call or a result without a question before it")
        else:
            steps.setdefault(len(plain), []).append(message)
    return plain, steps


def _content(messages: list[Any], at: int, path: Path) -> str:
    message = messages[at]
    if not isinstance(message, dict) or not isinstance(message.get("content"), str):
        raise UserError(f'Message {at + 1} of {path} has no "content" text: use a file that /save wrote')
    begins = isinstance(messages[0], dict) and messages[0].get("role") == "system"
    expected = "system" if begins and at == 0 else ("user", "assistant")[(at - begins) % 2]
    if message.get("role") != expected:
        raise UserError(
            f"Message {at + 1} of {path} has the role {quoted(message.get('role'))} where {expected!r} "
            "is expected"
        )
    if at == len(messages) - 1 and expected == "user":
        raise UserError(f"{path} ends with a question: answer it, or remove message {at + 1}")
    return message["content"]
