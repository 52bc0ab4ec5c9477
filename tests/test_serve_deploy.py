"""The examples of deploy/ and the text about serving name options, variables and paths that there are."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

from cutaway.commands import serve_greeting
from cutaway.commands.serve_options import GROUPS, Operation
from scripts.lib.serving import proxied
from tests import serving
from tests.serving import Connections, httpx
from tests.waiting import wait_until

from cutaway.serve.operations.access import PUBLIC  # isort: skip
from cutaway.serve.operations.lifecycle import GRACE  # isort: skip

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "deploy"
OPTIONS = {f"--{one.name.replace('_', '-')}" for group in GROUPS for one in dataclasses.fields(group)}
OPTIONS |= {"--config", "--print-config"}


@pytest.mark.parametrize("name", ["cutaway.service", "Dockerfile", "compose.yaml"])
def test_options_and_variables_are_there(name: str) -> None:
    text = (DEPLOY / name).read_text()
    begun = re.findall(r"cutaway serve[^\n]*|cutaway\", \"serve\"[^\n]*|CUTAWAY_OPTIONS=\S*[^\n]*", text)
    assert name == "compose.yaml" or begun
    assert {option for line in begun for option in re.findall(r"--[a-z-]+", line)} <= OPTIONS
    code = "".join(path.read_text() for path in (ROOT / "cutaway").rglob("*.py"))
    used = set(re.findall(r"\bCUTAWAY_[A-Z_]+", text)) - {
        "CUTAWAY_OPTIONS",
        "CUTAWAY_MEMORY",
    }  # deploy/'s own
    assert used and all(variable in code for variable in used)


@pytest.mark.parametrize("page", ["serving.md", "operations.md"])
def test_the_text_names_options_that_there_are(page: str) -> None:
    text = (ROOT / "docs" / page).read_text()
    named = set(re.findall(r"`[^`\n]*?(--[a-z-]+)[^`\n]*`", text))
    assert "--drain" in named and named <= OPTIONS
    for block in re.findall(r"```yaml\n# cutaway serve.*?\n(.*?)```", text, re.S):
        assert {f"--{name}" for name in yaml.safe_load(block)} <= OPTIONS | {"--models"}


def test_what_the_image_is_built_of_is_there_and_enough() -> None:
    listed = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    kept = {line[1:] for line in listed if line.startswith("!")}
    assert "*" in listed and all((ROOT / name).exists() for name in kept)
    project = (ROOT / "pyproject.toml").read_text()
    assert {"pyproject.toml", "CMakeLists.txt", "native", "cutaway"} <= kept
    assert all(
        name in kept for name in re.findall(r'^(?:readme = |license-files = \[)"([^"]+)"', project, re.M)
    )


def test_the_composition_fits_together() -> None:
    made = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services, server = made["services"], made["services"]["cutaway"]
    docker = DEPLOY / server["build"]["context"] / server["build"]["dockerfile"]
    assert docker.samefile(DEPLOY / "Dockerfile")
    port = re.search(r"^EXPOSE (\d+)", docker.read_text(), re.M)
    assert port is not None and services["webui"]["environment"]["OPENAI_API_BASE_URL"].endswith(
        f":{port[1]}/v1"
    )
    drain = Operation().drain
    assert int(server["stop_grace_period"].removesuffix("s")) > drain
    unit = re.search(r"^TimeoutStopSec=(\d+)", (DEPLOY / "cutaway.service").read_text(), re.M)
    assert unit is not None and int(unit[1]) > drain
    mounted = {volume.partition(":")[0] for one in services.values() for volume in one["volumes"]}
    files = {one for one in mounted if one.startswith("./")}
    assert mounted - files == set(made["volumes"]) and all((DEPLOY / one).is_file() for one in files)
    used = {secret for one in services.values() for secret in one.get("secrets", ())}
    assert used == set(made["secrets"])


def test_memory_processes_and_images_can_be_limited_and_pinned() -> None:
    made = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"].values()
    assert all({"mem_limit", "pids_limit", "restart"} <= set(service) for service in made)
    unit = (DEPLOY / "cutaway.service").read_text()
    assert re.search(r"^MemoryMax=", unit, re.M) and re.search(r"^TasksMax=", unit, re.M)
    pinned = r"\$\{[A-Z]+_IMAGE(:-[^}]+)?\}"
    images = re.findall(r"^FROM (\S+)", (DEPLOY / "Dockerfile").read_text(), re.M)
    images += [service["image"] for service in made if "image" in service]
    assert len(images) == 5 and all(re.fullmatch(pinned, image) for image in images)


def test_the_image_has_no_pytorch_and_what_the_server_needs() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    run = [line for line in text.splitlines() if not line.startswith(("#", "ARG"))]
    assert not [line for line in run if "http" in line and "127.0.0.1" not in line]
    assert re.search(r"^ARG EXTRAS=$", text, re.M) and not re.search(r"torch", "\n".join(run), re.I)
    made = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["cutaway"]["build"]["args"]
    assert made["EXTRAS"] == "${EXTRAS-}"
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = re.findall(r"EXTRAS=\[(\w+)\]", text)
    assert named and set(named) <= extras.keys()
    (installed,) = re.findall(r'install --no-cache-dir "/src\$\{EXTRAS\}" ([\w ]+)', text)
    assert set(installed.split()) == set(serve_greeting.GRAMMARS), "what grammars need, and nothing else"
    assert all(any(need.startswith(name) for need in extras["agent"]) for name in installed.split())


def test_commands_of_containers_name_options_and_paths_that_there_are() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    deployment, service, _ = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    pod = deployment["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    for command in (compose["services"]["cutaway"]["command"], container["args"]):
        assert {word for word in command if word.startswith("--")} <= OPTIONS
    probes = [container[f"{name}Probe"]["httpGet"]["path"] for name in ("startup", "readiness", "liveness")]
    assert probes == ["/health/live", "/health/ready", "/health/live"] and set(probes) <= set(PUBLIC)
    delay = float(container["args"][container["args"].index("--stop-delay") + 1])
    assert pod["terminationGracePeriodSeconds"] > delay + Operation().drain + GRACE
    assert service["spec"]["selector"] == deployment["spec"]["template"]["metadata"]["labels"]
    assert {one["name"] for one in pod["volumes"]} == {one["name"] for one in container["volumeMounts"]}


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")
def test_systemd_finds_nothing_wrong_in_the_units(tmp_path: Path) -> None:
    for name in ("cutaway.service", "cutaway.socket"):
        text = (DEPLOY / name).read_text().replace("/opt/cutaway/bin/cutaway", sys.executable)
        (tmp_path / name).write_text(text)
    command = ["systemd-analyze", "verify", "--man=no", *map(str, tmp_path.iterdir())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


CHECKERS = {  # what each finds wrong in the examples is an exit code
    "hadolint": ["Dockerfile"],
    "docker-compose": ["-f", "compose.yaml", "config", "--quiet"],
    "kubeconform": ["-strict", "kubernetes.yaml"],
    "kubernetes-validate": ["--strict", "kubernetes.yaml"],
    "promtool": ["check", "config", "--syntax-only", "prometheus.yml"],
    "promtool, its rules": ["check", "rules", "alerts.yml"],
    "caddy": ["validate", "--adapter", "caddyfile", "--config", "Caddyfile"],
}


@pytest.mark.parametrize("program", CHECKERS)
def test_checkers_find_nothing_wrong_in_the_examples(program: str, tmp_path: Path) -> None:
    program, checks = program.partition(",")[0], CHECKERS[program]
    path = shutil.which(program) or shutil.which(program, path=Path(sys.executable).parent)
    if path is None:
        pytest.skip(f"{program} is not installed")
    env = os.environ | {"CUTAWAY_API_KEY": "a-key", "XDG_CONFIG_HOME": str(tmp_path), "HOME": str(tmp_path)}
    command = [path, *checks]
    done = subprocess.run(command, cwd=DEPLOY, capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("proxy", ["nginx", "caddy"])
def test_tokens_come_through_a_proxy_as_they_are_made(proxy: str, tmp_path: Path) -> None:
    if not shutil.which(proxy):
        pytest.skip(f"{proxy} is not installed")
    seen: list[str] = []
    with serving.running(serving.model(), connections=Connections(proxies=("127.0.0.0/8",))) as server:
        submit, address = server.service.decoder.submit, server.url.removeprefix("http://")
        server.service.decoder.submit = lambda asked: (seen.append(asked.client), submit(asked))[1]
        with proxied(proxy, [address], tmp_path) as url:
            body = {"prompt": "x", "max_tokens": 4000, "ignore_eos": True, "stream": True}
            sent = {"X-Forwarded-For": "9.9.9.9", "Host": "localhost"}
            with httpx.stream("POST", f"{url}/v1/completions", json=body, headers=sent, timeout=30) as going:
                lines = going.iter_lines()
                assert next(lines).startswith("data: ") and server.service.decoder.stats().running == 1
            running = server.service.decoder.stats  # the client's leaving is felt through the proxy
            wait_until(lambda: not running().running, "the answer of a client that left ends")
            assert httpx.get(f"{url}/metrics", headers=sent).status_code == 404
    assert seen == ["9.9.9.9" if proxy == "nginx" else "127.0.0.1"]  # Caddy believes no client's header


@pytest.mark.skipif(not shutil.which("nginx"), reason="nginx is not installed")
def test_requests_that_begin_alike_go_to_one_server(tmp_path: Path) -> None:
    """A conversation that grows, by its body alone; many are shared out, and a full server passes on."""
    seen: list[tuple[int, int]] = []
    free, entered = threading.Event(), threading.Semaphore(0)
    with ExitStack() as stack:
        ports = [stack.enter_context(_noting(seen, free, entered)) for _ in range(2)]
        url = stack.enter_context(proxied("nginx", [f"127.0.0.1:{port}" for port in ports], tmp_path))
        client = stack.enter_context(httpx.Client(timeout=None))

        def ask(n: int, turns: int, **more: object) -> None:
            messages = [f"You are helper {n}. " + "x" * 2000, *(f"turn {turn}" for turn in range(turns))]
            client.post(f"{url}/v1/completions", json={"n": n, "messages": messages, **more})

        for n in range(
            40
        ):  # the ports are others each time, and a hash that sent all to one would be unlikely
            for turns in (1, 5, 500):
                ask(n, turns)
        servers = {n: {port for each, port in seen if each == n} for n in range(40)}
        assert all(len(found) == 1 for found in servers.values()) and len(seen) == 120
        assert set().union(*servers.values()) == set(ports)
        with ThreadPoolExecutor(60) as pool:
            held = [pool.submit(client.post, f"{url}/v1/completions", json=HELD) for _ in range(60)]
            try:
                assert all(entered.acquire(timeout=120) for _ in held), (
                    "each reaches a server, which holds it"
                )
            finally:
                free.set()
            assert all(each.result().status_code == 200 for each in held)
        counts = Counter(port for n, port in seen if n == HELD["n"])
        assert sorted(counts.values()) == [12, 48], "max_conns at the one, the others at the next"


HELD = {"n": 99, "held": True, "prompt": "x" * 3000}


@contextmanager
def _noting(
    seen: list[tuple[int, int]], free: threading.Event, entered: threading.Semaphore
) -> Iterator[int]:
    """A server that notes whose request comes where, and holds those that ask for it until it may answer."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            self._answer()

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((body["n"], server.server_port))
            if "held" in body:
                entered.release()
                free.wait()
            self._answer()

        def _answer(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

    class Server(ThreadingHTTPServer):
        request_queue_size = 64

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        free.set()
        server.shutdown()
        server.server_close()
        thread.join()
