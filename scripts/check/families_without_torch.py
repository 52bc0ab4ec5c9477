"""Every family where PyTorch is absent: it is read, gives logits and is written as GGUF, or says why not.

    python -m scripts.check.families_without_torch          # a minute

The models are those of tests/parity/tiny.py, small and random, one of each family. Exit code 1 where one
fails otherwise than in a sentence, or where PyTorch was imported. That logits are right is tests/parity's.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.parity import tiny

ROOT = Path(__file__).parents[2]
PLAIN = """
import sys
from pathlib import Path
import numpy as np, cutaway
for folder in sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir()):
    try:
        lm = cutaway.load(folder)
        assert np.isfinite(lm.logits([3, 4, 5, 6, 7, 8])).all()
        lm.save(folder / "written.gguf", type="F32")
        print("ok     ", folder.name)
    except cutaway.UserError as problem:
        print("refused", folder.name, str(problem).replace(str(folder), "MODEL"))
    except Exception as problem:
        print("WRONG  ", folder.name, type(problem).__name__, problem)
if "torch" in sys.modules:
    print("WRONG   PyTorch was imported")
"""


def main() -> int:
    with tempfile.TemporaryDirectory() as temporary:
        folders = Path(temporary)
        for case in (name for name in tiny.CASES if name.endswith("-1") or "-" not in name):
            tiny.model(case).save_pretrained(folders / case)
        paths = [ROOT / "tests" / "without_torch" / "refuse", *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
        command = [sys.executable, "-c", PLAIN, temporary]
        shown = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout
        print(shown, end="")
        wrong = shown.count("WRONG")
    print(
        f"{shown.count('ok  ')} run and are written, {shown.count('refused')} say why not, {wrong} are wrong"
    )
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
