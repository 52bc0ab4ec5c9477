"""llama-server's slots, saved, restored and erased, each key's its own; and pages on disk by HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cutaway import native
from cutaway.generate.batch.prefix_store import PrefixStore
from cutaway.generate.batch.saved_text import Saver
from cutaway.serve.operations.access import AccessPolicy
from cutaway.serve.operations.api_keys import KeyRing
from cutaway.serve.saved_slots import SavedSlots
from cutaway.store.sealed import Seal
from tests import serving

pytestmark = pytest.mark.skipif(
    native.unavailable_reason() is not None, reason=native.unavailable_reason() or "built"
)
ONE, OTHER = "the-key-of-one", "the-key-of-another"
PROMPT = " ".join(f"ship {n} is here" for n in range(60))
ASKED = {"prompt": PROMPT, "n_predict": 4, "temperature": 0, "id_slot": 1}


@pytest.fixture(scope="module")
def lm() -> Any:
    return serving.model()


@contextmanager
def server(lm: Any, folder: Path, digest: bytes = b"model", keys: tuple[str, ...] = ()) -> Iterator[Any]:
    slots = SavedSlots(folder, Saver(digest, Seal()), 1 << 30)
    policy = AccessPolicy(None, (), KeyRing(keys), "", 1 << 20, 30.0)
    with serving.running(lm, policy, slots=slots) as made:
        yield made


def bearer(key: str) -> dict[str, Any]:
    return {"headers": {"Authorization": f"Bearer {key}"}}


def test_a_slot_is_saved_restored_by_another_server_and_erased(lm: Any, tmp_path: Path):
    with server(lm, tmp_path) as made:
        before = made.post("/completion", ASKED).json()
        assert before["id_slot"] == 1
        saved = made.post("/slots/1?action=save", {"filename": "talk.bin"}).json()
    tokens = before["tokens_evaluated"] + before["tokens_predicted"] - 1  # the last is not read
    whole = tokens // 128 * 128
    assert saved.keys() == {"id_slot", "filename", "n_saved", "n_written", "timings"}
    assert (saved["id_slot"], saved["filename"], saved["n_saved"]) == (1, "talk.bin", tokens)
    file = tmp_path / "talk.bin"
    assert saved["n_written"] == file.stat().st_size and file.stat().st_mode & 0o777 == 0o600
    assert saved["timings"]["save_ms"] > 0
    with server(lm, tmp_path) as made:
        restored = made.post("/slots/0?action=restore", {"filename": "talk.bin"}).json()
        assert restored.keys() == {"id_slot", "filename", "n_restored", "n_read", "timings"}
        assert (restored["n_restored"], restored["n_read"]) == (tokens, saved["n_written"])
        after = made.post("/completion", ASKED | {"id_slot": 0}).json()
        assert after["content"] == before["content"] and after["tokens_cached"] == whole
        erased = serving.httpx.post(f"{made.url}/slots/0?action=erase", timeout=60).json()  # without a body
        assert erased == {"id_slot": 0, "n_erased": tokens}
        again = made.post("/completion", ASKED).json()
        assert again["content"] == before["content"] and again["tokens_cached"] == 0
        assert made.post("/slots/5?action=erase", {}).json()["n_erased"] == 0


def test_what_cannot_be_saved_or_restored_is_refused(lm: Any, tmp_path: Path):
    folder, outside = tmp_path / "slots", tmp_path / "outside.bin"
    with server(lm, folder) as made:
        refused = made.post("/slots/0?action=save", {"filename": "a"})
        assert refused.status_code == 400 and "has read no text" in refused.text
        made.post("/completion", ASKED | {"id_slot": None})
        (folder / "link").symlink_to(outside)
        names = ["", ".", "..", "../outside.bin", str(outside), "a/b", "a\\b", ".a", "a.", " a", "a ", "a\0b"]
        names += ["a\nb", "a..b", "c:d", "n" * 256, "é" * 128, "\uff0e\uff0e", "\ud800", "link"]
        for name in names:
            for action in ("save", "restore"):
                raw = json.dumps({"filename": name})
                answer = serving.httpx.post(f"{made.url}/slots/0?action={action}", content=raw)
                assert answer.status_code == 400 and "file" in answer.json()["error"]["message"], name
        assert [path.name for path in tmp_path.rglob("*")] == ["slots", "link"]
        for path in ("0?action=remove", "0", "16?action=erase", "-1?action=erase", "x?action=save"):
            assert made.post(f"/slots/{path}", {"filename": "a"}).status_code == 400, path
        absent = made.post("/slots/0?action=restore", {"filename": "absent"})
        assert absent.status_code == 400 and "There is no file 'absent'" in absent.text
        assert made.post("/completion", ASKED | {"id_slot": 16}).status_code == 400
        made.service.slots._limit = 1000
        full = made.post("/slots/0?action=save", {"filename": "a"})
        assert full.status_code == 507 and "remove files there" in full.text
    with serving.running(lm) as made:
        none = made.post("/slots/0?action=save", {"filename": "a"})
        assert none.status_code == 501 and "--slot-save-path" in none.text


def test_a_slots_file_is_of_one_key_and_model_and_used_only_as_it_was_written(lm: Any, tmp_path: Path):
    with server(lm, tmp_path, keys=(ONE, OTHER)) as made:
        before = made.post("/completion", ASKED, **bearer(ONE)).json()
        assert made.post("/slots/1?action=save", {"filename": "a"}, **bearer(ONE)).status_code == 200
        theirs = made.post("/slots/1?action=save", {"filename": "a"}, **bearer(OTHER))
        assert theirs.status_code == 400 and "has read no text" in theirs.text
        assert made.post("/slots/1?action=restore", {"filename": "a"}, **bearer(OTHER)).status_code == 400
        made.post("/completion", ASKED, **bearer(OTHER))
        assert made.post("/slots/1?action=save", {"filename": "a"}, **bearer(OTHER)).status_code == 200
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert len(files) == 2
        one, other = (path.read_bytes() for path in files)
        assert one != other
        sound = one
        for data in (
            other,
            sound[:-1],
            sound + b"x",
            sound[:100],
            b"",
            flipped(sound, 80),
            flipped(sound, -9),
        ):
            files[0].write_bytes(data)
            answers = [
                made.post("/slots/0?action=restore", {"filename": "a"}, **bearer(k)) for k in (ONE, OTHER)
            ]
            assert sorted(one.status_code for one in answers) == [200, 400]
            assert any("nothing of it is used" in one.text for one in answers)
        files[0].write_bytes(sound)
    with server(lm, tmp_path, b"another model", (ONE, OTHER)) as made:
        assert made.post("/slots/1?action=restore", {"filename": "a"}, **bearer(ONE)).status_code == 400
        after = made.post("/completion", ASKED, **bearer(ONE)).json()
        assert after["tokens_cached"] == 0 and after["content"] == before["content"]


def flipped(data: bytes, at: int) -> bytes:
    at %= len(data)
    return data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]


def test_usage_and_metrics_count_what_came_from_disk_for_one_key_alone(lm: Any, tmp_path: Path):
    body = {"prompt": PROMPT, "max_tokens": 2, "temperature": 0}
    policy = AccessPolicy(None, (), KeyRing((ONE, OTHER)), "", 1 << 20, 30.0)

    def cached(key: str, salt: str | None = None) -> int:
        answer = made.post("/v1/completions", body | {"cache_salt": salt}, **bearer(key)).json()
        return answer["usage"]["prompt_tokens_details"]["cached_tokens"]

    with serving.running(lm, policy, prefixes=PrefixStore(tmp_path, b"model", 1 << 30)) as made:
        assert cached(ONE) == 0
    with serving.running(lm, policy, prefixes=PrefixStore(tmp_path, b"model", 1 << 30)) as made:
        assert cached(OTHER) == cached(ONE, "salt") == 0
        whole = cached(ONE)
        assert whole >= 256 and whole % 128 == 0
        figures = made.get("/metrics", **bearer(ONE)).text
    for name, value in {
        "restored_tokens_total": whole,
        "prefix_store_loaded_pages_total": whole // 128,
        "prefix_store_damaged_pages_total": 0,
    }.items():
        assert f'cutaway_{name}{{model="{serving.NAME}"}} {float(value)}\n' in figures
    assert f'cutaway_prefix_store_bytes{{model="{serving.NAME}"}} ' in figures
