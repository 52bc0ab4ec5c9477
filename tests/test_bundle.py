"""Bundles: what goes in comes out, what was changed is refused, `cutaway run` opens them as they say."""

import hashlib
import io
import json
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import cutaway
from cutaway import bundle, cli
from cutaway.commands import chat as verb
from cutaway.commands import console
from cutaway.commands import serve as serving
from cutaway.commands.serve_options import Listening, Loading, Several
from cutaway.embedding import search
from cutaway.errors import UserError
from cutaway.serve.service import Limits
from cutaway.weights import adapters, load
from tests.small import TEMPLATE, model_file


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUTAWAY_HOME", str(tmp_path / "cache"))


@pytest.fixture
def made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """A bundle with everything in it but an adapter."""
    (tmp_path / "notes" / "deep").mkdir(parents=True)
    (tmp_path / "notes" / "a.txt").write_text("A cat.")
    (tmp_path / "notes" / "deep" / "b.txt").write_text("A river.")
    with_index(tmp_path / "notes")
    (tmp_path / "own.jinja").write_text("{# own #}" + TEMPLATE)
    figures = {"acc": 0.5, "acc_interval": [0.4, 0.6], "n": 100}
    (tmp_path / "figures.json").write_text(json.dumps({"tasks": {"own": figures}}))
    words = [
        str(model_file(tmp_path / "small.gguf")),
        "--whole",
        "--system",
        "Be brief.",
        "--temperature",
        "0",
    ]
    words += ["--tools", "search,calculator", "--documents", str(tmp_path / "notes")]
    words += ["--chat-template", str(tmp_path / "own.jinja"), "--max-tokens", "3"]
    words += ["--evaluation", str(tmp_path / "figures.json"), "--output", str(tmp_path / "own.cutaway")]
    assert cli.main(["bundle", *words]) == 0, capsys.readouterr().err
    return tmp_path / "own.cutaway"


def with_index(folder: Path) -> None:
    index = search.Index(folder, search.home_of(folder), "minilm")
    index.update(lambda texts: np.eye(len(texts), 2, dtype=np.float32), lambda text: True)
    index.close()


def test_what_goes_in_comes_out(made: Path, tmp_path: Path) -> None:
    opened = bundle.open(made)
    about = opened.manifest
    assert (about.system, about.sampling) == ("Be brief.", {"temperature": 0, "max_tokens": 3})
    assert about.tools == ("search", "calculator") and opened.adapter is None
    assert opened.model is not None and opened.model.read_bytes() == (tmp_path / "small.gguf").read_bytes()
    assert opened.template is not None and opened.template.read_text().startswith("{# own #}")
    assert opened.documents is not None and (opened.documents / "deep" / "b.txt").read_text() == "A river."
    bundle.check_model(about, opened.model)
    # the index came along: nothing is embedded again
    with_vectors = search.Index(opened.documents, search.home_of(opened.documents), "minilm")
    done = with_vectors.update(lambda texts: pytest.fail("read again"), lambda text: True)
    with_vectors.close()
    assert (done.unchanged, done.passages) == (2, 2)
    card = (opened.folder / bundle.CARD).read_text()
    assert "| own | acc | 0.500 | 0.400 to 0.600 | 100 |" in card and "Be brief." in card


def test_the_same_contents_are_the_same_bytes(made: Path, tmp_path: Path) -> None:
    words = [str(tmp_path / "small.gguf"), "--whole"]
    for name in ("one", "two"):
        assert cli.main(["bundle", *words, "--output", str(tmp_path / name)]) == 0
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert "Nothing: give" in zipfile.ZipFile(tmp_path / "one").read(bundle.CARD).decode()


def rewritten(file: Path, change: Any) -> Path:
    """A copy of a bundle, its members by name as ``change`` leaves them."""
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    change(members)
    with zipfile.ZipFile(file.with_suffix(".changed"), "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return file.with_suffix(".changed")


def renamed(members: dict[str, bytes], name: str) -> None:
    about = json.loads(members["manifest.json"])
    about["files"][name] = about["files"].pop("template.jinja")
    members["manifest.json"], members[name] = json.dumps(about).encode(), members.pop("template.jinja")


def stated(members: dict[str, bytes], **what: Any) -> None:
    members["manifest.json"] = json.dumps(json.loads(members["manifest.json"]) | what).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update({"template.jinja": b"{{ evil }}"}), "was changed: template.jinja"),
        (lambda m: m.update({"more.py": b""}), "other files than its manifest"),
        (lambda m: m.pop("documents/a.txt"), "other files than its manifest"),
        (lambda m: renamed(m, "../out.txt"), "leaves its folder"),
        (lambda m: renamed(m, "/tmp/out.txt"), "leaves its folder"),
        (lambda m: stated(m, tools=["own.py:function"]), "names the tool"),
        (lambda m: stated(m, model="/etc/passwd"), "which is no name"),
        (lambda m: stated(m, system=["a list"]), "manifest is missing or wrong"),
        (lambda m: stated(m, bogus=1), "manifest is missing or wrong"),
        (lambda m: m.update({"manifest.json": b"[]"}), "manifest is missing or wrong"),
        (lambda m: m.pop("manifest.json"), "manifest is missing or wrong"),
        (lambda m: stated(m, sampling=["temperature"]), "manifest is missing or wrong"),
        (lambda m: stated(m, adapter="yes"), "manifest is missing or wrong"),
        (lambda m: stated(m, files=[]), "manifest is missing or wrong"),
    ],
)
def test_a_changed_bundle_is_refused(made: Path, tmp_path: Path, change: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        bundle.open(rewritten(made, change))
    assert not (tmp_path / "cache" / "out.txt").exists() and not Path("/tmp/out.txt").exists()


def test_members_that_share_bytes_are_refused(made: Path, tmp_path: Path) -> None:
    """Each member's data is all that follows its header: 40 members make 21 times the file, all with a right
    digest.
    """
    names, tail = [f"documents/{n:02}.txt" for n in range(40)], b"x" * 1000
    for name in reversed(names):
        tail = local(name, tail) + tail
    with zipfile.ZipFile(made) as archive:
        about = json.loads(archive.read("manifest.json"))
    files, directory, at = {}, b"", 0
    for name in names:
        data = tail[at + 30 + len(name) :]
        files[name] = hashlib.sha256(data).hexdigest()
        directory += central(name, data, at)
        at += 30 + len(name)
    manifest = json.dumps(
        about | {"files": files, "model": "smollm2", "adapter": False, "template": False}
    ).encode()
    directory += central("manifest.json", manifest, len(tail))
    body = tail + local("manifest.json", manifest) + manifest
    end = struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, 41, 41, len(directory), len(body), 0)
    (tmp_path / "bomb.cutaway").write_bytes(body + directory + end)
    with zipfile.ZipFile(tmp_path / "bomb.cutaway") as archive:  # as a reader that unpacks sees it
        assert sum(len(archive.read(name)) for name in names) > 10 * len(body)
    with pytest.raises(UserError, match="members overlap"):
        bundle.open(tmp_path / "bomb.cutaway")
    assert not (tmp_path / "cache" / "bundles").exists()


def local(name: str, data: bytes) -> bytes:
    """The header before a member's data."""
    numbers = (20, 0, 0, 0, 33, zlib.crc32(data), len(data), len(data), len(name), 0)
    return struct.pack("<4sHHHHHLLLHH", b"PK\3\4", *numbers) + name.encode()


def central(name: str, data: bytes, at: int) -> bytes:
    """A member's entry in an archive's directory."""
    numbers = (0x314, 20, 0, 0, 0, 33, zlib.crc32(data), len(data), len(data), len(name), 0, 0, 0, 0, 0, at)
    return struct.pack("<4sHHHHHHLLLHHHHHLL", b"PK\1\2", *numbers) + name.encode()


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    for file, message in ((tmp_path / "text", "no bundle"), (tmp_path / "no", "no such file")):
        with pytest.raises(UserError, match=message):
            bundle.open(file)


def test_a_named_model_is_held_to_its_digest(made: Path, tmp_path: Path) -> None:
    about = bundle.open(made).manifest
    packed = zipfile.ZipFile(tmp_path / "z", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(made) as archive, packed:
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    with pytest.raises(UserError, match="is compressed"):
        bundle.open(tmp_path / "z")
    with (tmp_path / "small.gguf").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(UserError, match="is not the file that the bundle was made with"):
        bundle.check_model(about, tmp_path / "small.gguf")
    with pytest.raises(UserError, match="add --whole"):
        bundle.write_bundle(tmp_path / "x", str(tmp_path / "small.gguf"), tmp_path / "small.gguf", "")
    with pytest.raises(UserError, match="add --tools"):
        bundle.write_bundle(
            tmp_path / "x", "smollm2", tmp_path / "small.gguf", "", documents=tmp_path / "notes"
        )


def test_signatures(made: Path, tmp_path: Path) -> None:
    pytest.importorskip("model_signing")
    from cryptography.hazmat.primitives import serialization as pem
    from cryptography.hazmat.primitives.asymmetric import ec

    def key(name: str) -> tuple[Path, Path]:
        own = ec.generate_private_key(ec.SECP256R1())
        private = own.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption())
        public = own.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / f"{name}.pem").write_bytes(private)
        (tmp_path / f"{name}.pub").write_bytes(public)
        return tmp_path / f"{name}.pem", tmp_path / f"{name}.pub"

    (private, public), (_, other) = key("own"), key("other")
    with pytest.raises(UserError, match="is not signed"):
        bundle.verify(made, public)
    bundle.sign(made, private)
    bundle.verify(made, public)
    with pytest.raises(UserError, match="does not hold"):
        bundle.verify(made, other)
    with made.open("ab") as file:
        file.write(b"\0")
    with pytest.raises(UserError, match="does not hold"):
        bundle.verify(made, public)


def test_run_opens_what_bundle_wrote(made: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    seen: dict[str, Any] = {}

    def talk(self: Any, lines: Any) -> None:
        seen.update(options=self.options, system=self.conversation.system, lm=self.lm, agent=self.agent)

    monkeypatch.setattr(verb.Talk, "run", talk)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    monkeypatch.setattr(console, "interactive", lambda: True)
    assert cli.main(["run", str(made)]) == 0, capsys.readouterr().err
    assert f"{made}: " in (printed := capsys.readouterr().err) and "tools (search, calculator)" in printed
    assert seen["system"] == "Be brief." and seen["options"]["temperature"] == 0
    assert seen["lm"].checkpoint.chat_template.startswith("{# own #}")
    assert [tool.name for tool in seen["agent"].tools] == ["search", "calculator"]


def test_run_serves_what_bundle_wrote(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(serving.serve_options, "check", lambda *groups: asked.extend(groups))
    monkeypatch.setattr(serving, "_check_access", stop)
    assert cli.main(["run", str(made), "--serve", "--port", "8123"]) == 2
    assert "stopped here" in capsys.readouterr().err
    listening, loading = (
        next(one for one in asked if isinstance(one, kind)) for kind in (Listening, Loading)
    )
    assert listening.port == 8123 and loading.adapter == ()
    assert loading.chat_template is not None and "own" in Path(loading.chat_template).read_text()


def test_a_served_bundle_answers_with_its_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By default, and under the bundle's name and its model's: the base would be another model."""
    base = model_file(tmp_path / "small.gguf")
    checkpoint, name = load.read_checkpoint(base), "blocks.0.attention.query.weight"
    wide, out = checkpoint.config.weights()[name][1], checkpoint.config.weights()[name][0]
    random = np.random.default_rng(1)
    drawn = random.standard_normal((2, wide), np.float32), random.standard_normal((out, 2), np.float32)
    adapters.write_adapter(tmp_path / "adapter", {name: adapters.LowRank(*drawn, 1.0)}, checkpoint, str(base))
    monkeypatch.setattr("cutaway.commands.console.model_path", lambda name: base)
    monkeypatch.setattr("cutaway.commands.serve.model_path", lambda name: base)
    made, given = tmp_path / "t.cutaway", list[Any]()
    assert cli.main(["bundle", "--adapter", str(tmp_path / "adapter"), "--output", str(made)]) == 0
    monkeypatch.setattr(serving, "run", lambda *all, **_: given.extend(all))
    assert cli.main(["run", str(made), "--serve"]) == 0
    loading = next(one for one in given if isinstance(one, Loading))
    models = serving.Loader(given[0], loading, Several(), Limits()).models()
    model = models.find(None)
    assert model.names == ("t", "smollm2") and models.find("smollm2") is model is models.find("t")
    lm, ids = cutaway.load(base), [1, 2, 3]
    assert np.array_equal(models.default.lm.logits(ids), lm.with_adapter(tmp_path / "adapter").logits(ids))
    assert not np.array_equal(models.default.lm.logits(ids), lm.logits(ids))
    assert models.default.engine_of("t") is None  # the scheduler's own
    both = Loading(adapter=(str(tmp_path / "adapter"), "a=folder"))
    with pytest.raises(UserError, match="it needs a name"):
        serving.Loader(given[0], both, Several(), Limits()).models()


def stop(*_: Any) -> None:
    raise UserError("stopped here")


def test_the_default_model_is_named_not_copied(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    small = model_file(tmp_path / "small.gguf")
    monkeypatch.setattr("cutaway.commands.console.model_path", lambda name: small)
    assert cli.main(["bundle", "--output", str(tmp_path / "named.cutaway"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["model_files"].keys() == {"small.gguf"}
    opened = bundle.open(tmp_path / "named.cutaway")
    assert opened.manifest.model == "smollm2" and opened.model is None
    assert set(opened.manifest.files) == {bundle.CARD}


@pytest.mark.parametrize(("at", "byte"), [(30, 0xFF), (None, 0xBE)])
def test_a_damaged_archive_is_refused_in_one_short_line(tmp_path: Path, at: int | None, byte: int) -> None:
    """A name that its own header spells otherwise, and a zip version that does not exist."""
    model, file = tmp_path / "model.gguf", tmp_path / "x.cutaway"
    model.write_bytes(b"GGUF")
    bundle.write_bundle(file, "smollm2", model, "# A card")
    data = bytearray(file.read_bytes())
    data[data.index(b"PK\x01\x02") + 6 if at is None else at] = byte
    file.write_bytes(data)
    with pytest.raises(UserError, match="no whole zip archive") as refused:
        bundle.open(file)
    assert len(str(refused.value)) < 300
