"""The image of deploy/Dockerfile, built and run as a stranger would: size, user, rights, health check, end.

    python -m scripts.check.container               # by podman, on python:3.13-slim; ten minutes
    python -m scripts.check.container --debian      # no registry: on Debian's packages (mmdebstrap, as root)
    python -m scripts.check.container --image cutaway          # one that is built already is only run

Its layers have at most 250 MB, and it runs as user 10001, without capabilities, with nothing to write to but
/data and /tmp. The health check passes, a text is continued for the key alone, and SIGTERM ends it with exit
code 0. Where containers cannot be nested, CONTAINERS_CONF names a file with other limits.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from cutaway import store

ROOT = Path(__file__).parents[2]
MOST_BYTES = 250e6
KEY = "a-key-of-this-check"
UNREAD = ("doc", "man", "locale")  # folders of /usr/share that a slim image has not
PACKAGES = "python3,python3-venv,python-is-python3,ca-certificates"
PROBES = {  # what Python in the running container must print
    "user": ("import os; print(os.getuid(), os.getgid() != 0)", "10001 True"),
    "capabilities": (
        "print(*(x.split()[1] for x in open('/proc/self/status') if x[:6] in ('CapEff', 'CapBnd')))",
        "0000000000000000 0000000000000000",
    ),
    "writes": (
        "import os; print([os.access(x, os.W_OK) for x in ('/', '/opt/cutaway', '/etc', '/data', '/tmp')])",
        "[False, False, False, True, True]",
    ),
    "tools": ("import shutil as s; print([x for x in ('g++', 'cmake', 'pip3.13') if s.which(x)])", "[]"),
    "core": ("from cutaway import native; print(native.available())", "True"),
    "packages": (
        "from importlib.util import find_spec as f; print(f('torch'), f('llguidance') is None)",
        "None False",
    ),
}


def podman(*arguments: str | Path) -> str:
    """What a command of podman prints; the script ends with that if it fails."""
    done = subprocess.run(["podman", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"podman {' '.join(map(str, arguments))}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return done.stdout.strip()


def debian(folder: Path) -> str:
    """A base image with Debian's Python, slim as the one of the registry: for a machine that reaches none."""
    root = folder / "base.tar"
    options = [f"--dpkgopt=path-exclude=/usr/share/{one}/*" for one in UNREAD]
    options += ["--customize-hook=cp /etc/ssl/certs/ca-certificates.crt $1/etc/ssl/certs/"]  # the index's own
    options += ["--customize-hook=rm -rf $1/var/lib/apt/lists/* $1/var/cache/apt/*"]
    subprocess.run(
        ["mmdebstrap", "--variant=minbase", f"--include={PACKAGES}", *options, "trixie", root], check=True
    )
    podman("import", root, "localhost/python:3.13-debian")
    return "localhost/python:3.13-debian"


def build(base: str, name: str) -> None:
    """The image of what is committed, on a base."""
    with tempfile.TemporaryDirectory() as tree:
        subprocess.run(f"git -C {ROOT} archive HEAD | tar -x -C {tree}", shell=True, check=True)
        settings = (
            "--format",
            "docker",
            "--build-arg",
            f"PYTHON_IMAGE={base}",
        )  # OCI's format has no HEALTHCHECK
        mounts = [one for one in ("/etc/pip.conf",) if Path(one).exists()]
        volumes = [f"--volume={one}:{one}:ro" for one in mounts]
        podman("build", *settings, *volumes, "-t", name, "-f", f"{tree}/deploy/Dockerfile", tree)


def sizes(name: str) -> bool:
    """Print what the layers take; whether all of them are small enough."""
    whole = int(podman("image", "inspect", name, "--format", "{{.Size}}"))
    used = podman("run", "--rm", "--network=none", "--entrypoint=du", name, "-sb", "/opt/cutaway").split()[0]
    print(f"           {whole / 1e6:.1f} MB of layers (at most {MOST_BYTES / 1e6:.0f}),", end=" ")
    print(f"{int(used) / 1e6:.1f} of them Cutaway and its libraries", flush=True)
    return whole <= MOST_BYTES


def asked(path: str, key: str = "") -> int:
    """The status of a request to the server in the container; 0 where none listens yet."""
    head = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    body = json.dumps({"model": "smollm2", "prompt": "The capital of France is", "max_tokens": 4}).encode()
    data = body if path == "/v1/completions" else None
    try:
        with urllib.request.urlopen(
            urllib.request.Request(f"http://127.0.0.1:8000{path}", data, head), timeout=120
        ) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def until_ready(container: str) -> float:
    """Seconds until the server is ready to answer."""
    begun = time.perf_counter()
    while asked("/health/ready") != 200:
        if (
            podman("inspect", container, "--format", "{{.State.Running}}") != "true"
            or time.perf_counter() - begun > 900
        ):
            logs = subprocess.run(["podman", "logs", container], capture_output=True, text=True)
            sys.exit(f"the server did not start:\n{logs.stdout}{logs.stderr}")
        time.sleep(0.5)
    return time.perf_counter() - begun


def run(name: str, data: Path) -> dict[str, bool]:
    """Start the image with few rights, and what holds of it."""
    rights = ("--read-only", "--cap-drop=all", "--security-opt=no-new-privileges", "--tmpfs=/tmp")
    place = ("--network=host", f"--volume={data}:/data", f"--env=CUTAWAY_API_KEY={KEY}")
    container = podman("run", "--detach", *rights, *place, name)
    try:
        print(f"           ready after {until_ready(container):.1f} s", flush=True)
        held = {
            what: podman("exec", container, "python", "-c", code) == wanted
            for what, (code, wanted) in PROBES.items()
        }
        health = subprocess.run(["podman", "healthcheck", "run", container], capture_output=True)
        held["health check"] = health.returncode == 0
        held["answers for the key"] = asked("/v1/completions", KEY) == 200
        held["refuses without"] = asked("/v1/completions") == 401
        podman("stop", "--time", "60", container)
        held["ends by SIGTERM"] = podman("inspect", container, "--format", "{{.State.ExitCode}}") == "0"
        return held
    finally:
        podman("rm", "--force", container)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base", default="docker.io/library/python:3.13-slim", help="the image to build on")
    parser.add_argument(
        "--debian", action="store_true", help="build on Debian's packages, without a registry"
    )
    parser.add_argument("--image", help="an image that is built already: it is only run")
    given = parser.parse_args()
    os.environ.setdefault("BUILDAH_ISOLATION", "chroot")
    if asked("/health/live"):
        sys.exit("port 8000 is taken, which the image's health check asks: end what listens there")
    with tempfile.TemporaryDirectory() as temporary:
        name = given.image or "localhost/cutaway"
        if not given.image:
            build(debian(Path(temporary)) if given.debian else given.base, name)
        data = Path(temporary, "data")
        model = Path("models", store.DEFAULT)
        if (store.home() / model).is_dir():  # else the server fetches it, as a first start does
            shutil.copytree(store.home() / model, data / model)
        data.mkdir(exist_ok=True)
        for path in (data, *data.rglob("*")):
            os.chown(path, 10001, 10001)
        Path(temporary).chmod(0o755)
        right = sizes(name)
        for what, holds in run(name, data).items():
            print(f"{'ok   ' if holds else 'WRONG'}      {what}")
            right &= holds
    return int(not right)


if __name__ == "__main__":
    sys.exit(main())
