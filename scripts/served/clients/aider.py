# /// script
# dependencies = [
#     "aider-chat==0.86.2",
# ]
# ///
"""aider: a message about a file of a repository, from the command line."""

import os
import subprocess
import sys
from pathlib import Path

from checks import check, home, model, url

Path(home, "sum.py").write_text("def add(a, b):\n    return a - b\n")
subprocess.run(["git", "init", "-q", home], check=False)
quiet = ["--no-auto-commits", "--no-gitignore", "--no-check-update", "--no-analytics", "--yes-always"]
quiet += ["--no-show-release-notes", "--no-show-model-warnings", "--map-tokens", "0"]
environment = os.environ | {"OPENAI_API_BASE": url + "/v1", "OPENAI_API_KEY": "none", "HOME": home}


def ran(*words):
    command = [sys.executable, "-m", "aider", "--model", f"openai/{model}", *quiet, *words, "sum.py"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env=environment, cwd=home, check=False
    )
    text = done.stdout + done.stderr
    assert done.returncode == 0 and "Tokens:" in text and "litellm." not in text, text[-300:]
    return text


check("--message", lambda: ran("--message", "Mend add."))
check("--no-stream", lambda: ran("--no-stream", "--message", "Mend add."))
