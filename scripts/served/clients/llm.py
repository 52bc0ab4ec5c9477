# /// script
# dependencies = [
#     "llm==0.36",
# ]
# ///
"""`llm`: a model of extra-openai-models.yaml, as its documentation sets it up."""

import os
import subprocess
import sys
from pathlib import Path

from checks import check, home, model, url

entry = f"- model_id: here\n  model_name: {model}\n  api_base: {url}/v1\n  api_key_name: none\n"
entry += "  supports_tools: true\n  supports_schema: true\n"
Path(home, "extra-openai-models.yaml").write_text(entry)
Path(home, "keys.json").write_text('{"none": "none"}')
environment = os.environ | {"LLM_USER_PATH": home}


def ran(*words):
    command = [sys.executable, "-m", "llm", "-m", "here", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-300:]
    return done.stdout.strip()


check("prompt", lambda: ran("Say hello.", "-o", "max_tokens", "20", "--no-stream"))
check("stream", lambda: ran("Say hello.", "-o", "max_tokens", "20"))
check("-c goes on", lambda: ran("-c", "Again.", "-o", "max_tokens", "20"))
check("--schema", lambda: ran("Red.", "--schema", "name, red int", "-o", "max_tokens", "200"))
check("--tool", lambda: ran("What time is it?", "-T", "llm_time", "-o", "max_tokens", "60"))
