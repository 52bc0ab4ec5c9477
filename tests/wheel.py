"""What a built wheel must do in an environment of its own, without test tools: `python tests/wheel.py`.

The native core is there and agrees with its reference; a tokenizer learns merges, is written, and read back.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import cutaway
from cutaway import native
from cutaway.quantization import formats


def main() -> None:
    """Exit code 1, with the sentence, where something is not as it should be."""
    assert native.available(), native.unavailable_reason()
    rows = np.linspace(-1, 1, 4096, dtype=np.float32).reshape(16, 256)
    for kind in ("Q4_0", "Q4_1", "Q8_0"):
        packed = formats.pack(rows, kind)
        assert np.array_equal(formats.unpack(packed), formats.unpack_reference(packed)), kind
    with tempfile.TemporaryDirectory() as folder:
        text, tokenizer = Path(folder, "text.txt"), Path(folder, "tokenizer.json")
        text.write_text("the king and the queen and the old king " * 50, "utf-8")
        command = ["tokenizer", "train", str(text), "--size", "280", "--output", str(tokenizer)]
        subprocess.run([sys.executable, "-m", "cutaway", *command], check=True, timeout=300)
        own = cutaway.Tokenizer.load(tokenizer)
        assert own.decode(own.encode("the queen \N{SNOWMAN}")) == "the queen \N{SNOWMAN}"
        assert len(own.encode("the king and")) < 12, "merges were learned"
    print(f"cutaway {cutaway.__version__}: {native.isa()}, Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
