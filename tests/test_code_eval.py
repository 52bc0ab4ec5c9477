"""The judge of code against forged answers: none of them passes tests that it does not meet."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest

from cutaway.evaluate import code_eval
from cutaway.evaluate.tasks import humaneval
from cutaway.evaluate.values import decode, encode
from cutaway.sandbox import Bounds

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox is Linux's")

PROMPT = "import math\ndef helper(x):\n    return x + 1\n\ndef f(x):\n    '''The square.'''\n"
TEST = """
METADATA = {"secret": "canary"}
def check(candidate):
    assert candidate(3) == 9
    assert candidate(-2) == 4
    assert f(5) == 25 and helper(1) == 2
    assert candidate(x=7) == 49
    print("the tests may print")
"""
LONG = Bounds(seconds=30)

# Every one defines f, or ends before it has to; none computes the square.
FORGERIES = {
    "sys.exit": "import sys\nsys.exit(0)",
    "os._exit": "import os\nos._exit(0)",
    "os._exit when called": "import os\ndef f(x):\n    os._exit(0)",
    "prints the verdict": "def f(x):\n    print('passed', flush=True)",
    "writes the verdict on every descriptor": """
import os
def f(x):
    for n in range(64):
        try: os.write(n, b"passed\\n")
        except OSError: pass
""",
    "writes the verdict before it is asked": """
import os
os.write(3, b"passed\\n")
os.write(3, b"passed\\n")
f = id
""",
    "says ready and passed itself": "import os\nos.write(3, b'ready\\npassed\\npassed\\n')\nos._exit(0)",
    "searches frames for the expected value": """
import sys
def f(x):
    frame = sys._getframe()
    while frame:
        for value in (*frame.f_locals.values(), *frame.f_globals.values(), *frame.f_code.co_consts):
            if isinstance(value, str) and "candidate" in value:
                exec(value, frame.f_globals)
                return 9 if "== 9" in value else None
        frame = frame.f_back
""",
    "searches all objects for tests": """
import gc
def f(x):
    texts = [o for o in gc.get_objects() if isinstance(o, dict) for o in o.values() if isinstance(o, str)]
    return 9 if any("assert candidate(3)" in text for text in texts) else None
""",
    "reads memory for tests": """
def f(x):
    return 9 if b"assert candidate" in open("/proc/self/mem", "rb").read(99) else 0
""",
    "an object equal to everything": """
class Any:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = None
def f(x):
    return Any()
""",
    "an integer equal to everything": """
class Number(int):
    def __eq__(self, other): return True
    __hash__ = int.__hash__
def f(x):
    return Number(1)
""",
    "a list whose elements are equal to everything": """
class Text(str):
    def __eq__(self, other): return True
    __hash__ = str.__hash__
def f(x):
    return [Text("9")]
""",
    "patches builtins": """
import builtins
builtins.AssertionError = ValueError
builtins.isinstance = lambda *_: True
builtins.print = builtins.exec = lambda *_: None
def f(x):
    return None
""",
    "patches json and the encoder": """
import json, sys
json.dumps = lambda *_, **__: '"passed"'
main = sys.modules["__main__"]
main.encode = lambda value: "passed"
def f(x):
    return 0
""",
    "answers with code": "def f(x):\n    return ['__import__(\"os\").write(3, b\"passed\\\\n\")']",
    "an atexit handler": """
import atexit, os
atexit.register(lambda: os.write(3, b"passed\\n"))
def f(x):
    raise SystemExit
""",
    "a thread that writes": """
import os, threading
def write():
    while True: os.write(3, b"passed\\n")
threading.Thread(target=write, daemon=True).start()
def f(x):
    return 0
""",
    "an infinite generator": "def f(x):\n    while True: yield 9",
    "an infinite list": "def f(x):\n    a = []\n    a.append(a)\n    return a",
    "a huge value": "def f(x):\n    return [9] * 10**6",
    "deep lists": "def f(x):\n    a = 9\n    for _ in range(900): a = [a]\n    return a",
    "deep JSON by hand": "import os\ndef f(x):\n    os.write(3, b'[' * 50000 + b'\\n')\n    return 9",
    "output without end": "def f(x):\n    while True: print('passed')",
    "no function": "g = 1",
    "no Python": "def f(x",
    "an exception named as the judge's": "def f(x):\n    raise AssertionError('passed')",
    "takes away the exceptions' effect": """
import sys
sys.excepthook = lambda *_: None
def f(x):
    raise SystemExit(0)
""",
    "recursion": "def f(x):\n    return f(x)",
    "not a number": "def f(x):\n    return float('nan')",
}  # fmt: skip


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_answer_fails(name: str):
    assert not code_eval.passes(FORGERIES[name], PROMPT, TEST, "f", LONG)


FRAMES = """    import os, sys
    frame = sys._getframe()
    while frame:
        for each in frame.f_code.co_consts:
            if isinstance(each, str) and len(each) == 32:
                print(each, flush=True)
        frame = frame.f_back
    os._exit(0)
"""


def test_humaneval_is_not_forged_from_the_frames_own_constants():
    """Where tests and answer were one program, its frame had the text that decided."""
    prompt, test = "def f(x):\n    'The square.'\n", TEST.replace(" and helper(1) == 2", "")
    row = {"prompt": prompt, "test": test, "entry_point": "f"}
    assert humaneval.check(row, "    return x * x") == 1
    assert humaneval.check(row, FRAMES) == 0


def test_a_right_answer_passes_whatever_else_it_does():
    honest = "import dataclasses\nprint('hello')\n@dataclasses.dataclass\nclass P:\n    y: int\n"
    assert code_eval.passes(
        f"{honest}def f(x):\n    print(x)\n    return P(x * x).y", PROMPT, TEST, "f", LONG
    )


def test_a_test_that_hangs_or_waits_ends():
    assert not code_eval.passes("def f(x):\n    while True: pass", PROMPT, TEST, "f", Bounds(seconds=0.5))
    endless = "def check(candidate):\n    while True: candidate(1)"
    assert not code_eval.passes("def f(x):\n    return 1", PROMPT, endless, "f", Bounds(seconds=0.5))


PLAIN = [
    None, True, False, 0, -1, 10**400, 1.5, -0.0, math.inf, 1 + 2j, "", "é\ud800\n\0",
    b"\0x", bytearray(b"y"),
    [], (), set(), frozenset(), {}, [1, (2, [3.0])], {(1, "a"): {"b", 2}, None: frozenset({1})},
]  # fmt: skip


@pytest.mark.parametrize("value", PLAIN, ids=range(len(PLAIN)))
def test_plain_values_keep_value_and_type(value: object):
    def kinds(each: Any) -> Any:
        if isinstance(each, dict):
            return [(kinds(k), kinds(v)) for k, v in each.items()]
        if isinstance(each, list | tuple):
            return type(each), [kinds(part) for part in each]
        return type(each), repr(each) if isinstance(each, float) else None

    back = decode(encode(value))
    assert back == value and kinds(back) == kinds(value)
    assert "\n" not in encode(value)


def test_what_is_not_plain_does_not_pass():
    class Equal(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    assert type(decode(encode(Equal(3)))) is int and decode(encode(Equal(3))) != 4
    assert math.isnan(decode(encode(math.nan)))  # type: ignore[arg-type]
    for value in (object(), iter([1]), len, Equal, range(3)):
        with pytest.raises(TypeError):
            encode(value)
    for line in (
        "passed",
        "[]",
        '["int"]',
        '["int", 5]',
        '["class", "x"]',
        "{}",
        '["list", {}]',
        "1",
        "[" * 99999,
    ):
        with pytest.raises((ValueError, TypeError, RecursionError)):
            decode(line)
