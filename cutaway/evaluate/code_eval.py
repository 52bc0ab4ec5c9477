"""Check untrusted code by its tests (HumanEval), in a process that the code cannot reach.

    passes(answer, prompt, test, "add", Bounds(seconds=10))

Two sandboxed processes. One has the answer and computes: a line of arguments in, a line with the value out.
The other has the tests, in which the function is a proxy that asks for such a line. Lines are plain values
(``values.py``), so that nothing of the answer's, neither objects nor code, runs beside an assert. The process
that starts both passes lines on and reads only the judge's. No expected value is in the answer's process.
"""

from __future__ import annotations

from pathlib import Path

from cutaway import sandbox

VALUES = Path(__file__).with_name("values.py")

ANSWERS = """
def main(answer, name):
    import os, sys, types
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(3, "wb", 0)
    os.close(0)
    os.open(os.devnull, os.O_RDWR)
    module = sys.modules["answer"] = types.ModuleType("answer")
    exec(compile(answer, "<code>", "exec"), module.__dict__)
    function = module.__dict__[name]
    replies.write(b"ready\\n")
    for line in requests:
        arguments, named = decode(line)
        try:
            reply = encode(("value", function(*arguments, **named)))
        except Exception as error:
            reply = encode(("error", type(error).__name__))
        replies.write(reply.encode() + b"\\n")

"""

JUDGES = """
def main(prompt, test, name):
    import os, sys
    replies, requests = os.fdopen(os.dup(0), "rb"), os.fdopen(3, "wb", 0)

    def candidate(*arguments, **named):
        requests.write(b"call " + encode((arguments, named)).encode() + b"\\n")
        kind, value = decode(replies.readline())
        if kind != "value":
            raise RuntimeError(value)
        return value

    namespace = {"__name__": "tests"}
    exec(compile(prompt, "<prompt>", "exec"), namespace)
    namespace[name] = candidate
    exec(compile(test, "<tests>", "exec"), namespace)
    namespace["check"](candidate)
    requests.write(b"passed\\n")

"""


def passes(
    answer: str, prompt: str, test: str, name: str, bounds: sandbox.Bounds, *, unsafe: bool = False
) -> bool:
    """Whether ``check(candidate)`` of ``test`` passes with the answer's function of this name.

    ``prompt`` is code that the tests may use too; its function of that name is replaced.
    """
    values = VALUES.read_text()
    computing = f"{values}{ANSWERS}main({answer!r}, {name!r})\n"
    judging = f"{values}{JUDGES}main({prompt!r}, {test!r}, {name!r})\n"
    with sandbox.Process(computing, bounds, unsafe=unsafe, conversation=True) as code:
        if code.hear() != b"ready":
            return False
        with sandbox.Process(judging, bounds, unsafe=unsafe, conversation=True) as judge:
            line = judge.hear()
            while line is not None and line.startswith(b"call "):
                value = code.ask(line.removeprefix(b"call "))
                line = None if value is None else judge.ask(value)
            return line == b"passed"
