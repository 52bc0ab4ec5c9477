"""Verbs and parts that write, map, lock, count, serve and train vectors, run one after another."""

import sys
from pathlib import Path

import cutaway
from cutaway import memory, store
from cutaway.cli import main
from cutaway.commands import serve, serve_options
from cutaway.embedding import corpus
from cutaway.serve.operations import lifecycle

memory.total = lambda: 8 << 30  # what a call of Windows' own returns there
memory.available = lambda: 4 << 30
model, folder = sys.argv[1:]
text = Path(folder, "text.txt")
text.write_text("the king and the queen and the old king\n" * 200, "utf-8")
target = Path(folder, "written")
with store.files.atomic_file(target) as out:
    out.write(b"one")
store.files.write_file(target, b"two")
with store.files.atomic_folder(Path(folder, "made")) as made:
    (made / "file").write_bytes(b"x")
assert target.read_bytes() == b"two" and Path(folder, "made", "file").is_file()
with corpus.opened(text) as file:
    assert next(corpus.lines(file, 0))[0] == b"the"
for line in (
    ["generate", "the king", "--model", model, "--max-tokens", "4"],
    ["tokenizer", "train", str(text), "--size", "270", "--output", str(Path(folder, "tokenizer.json"))],
    ["convert", model, str(Path(folder, "copy.gguf"))],
    ["models"],
):
    assert main(line) == 0, line
lifecycle.hold_signals()
assert serve and serve_options
lm = cutaway.load(model)
assert len(lm.generate_batch(["the", "king"], max_tokens=2)) == 2
print("all ran")
