"""What only POSIX has is missing, as on Windows: files are written, texts read, and verbs run as ever."""

import os
import subprocess
import sys
from pathlib import Path

from tests import small

HERE = Path(__file__).parent


def test_verbs_run_without_what_only_posix_has(tmp_path: Path) -> None:
    model = small.model_file(tmp_path / "tiny.gguf")
    paths = os.pathsep.join([str(HERE / "refuse"), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, str(HERE / "verbs.py"), str(model), str(tmp_path)],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths, "CUTAWAY_HOME": str(tmp_path / "home")},
        timeout=240,
    )
    assert done.returncode == 0 and done.stdout.endswith("all ran\n"), done.stdout + done.stderr
