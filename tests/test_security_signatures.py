"""The audit of signed models: what is signed is verified, what is not is listed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cutaway import cli
from cutaway.errors import UserError
from cutaway.security import audit
from tests.small import model_file

signing = pytest.importorskip("model_signing.signing")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A private key, its public key, and another's public key."""
    from cryptography.hazmat.primitives import serialization as pem
    from cryptography.hazmat.primitives.asymmetric import ec

    folder = tmp_path_factory.mktemp("keys")
    for name in ("own", "other"):
        key = ec.generate_private_key(ec.SECP256R1())
        private = key.private_bytes(pem.Encoding.PEM, pem.PrivateFormat.PKCS8, pem.NoEncryption())
        public = key.public_key().public_bytes(pem.Encoding.PEM, pem.PublicFormat.SubjectPublicKeyInfo)
        (folder / f"{name}.pem").write_bytes(private)
        (folder / f"{name}.pub").write_bytes(public)
    return folder / "own.pem", folder / "own.pub", folder / "other.pub"


def sign(path: Path, key: Path, signature: Path) -> None:
    signing.Config().use_elliptic_key_signer(private_key=key).sign(path, signature)


@pytest.fixture
def folder(tmp_path: Path, keys: tuple[Path, Path, Path]) -> Path:
    """A signed folder."""
    made = tmp_path / "model"
    (made / "deep").mkdir(parents=True)
    for name in ("config.json", "deep/words.txt"):
        (made / name).write_text("{}")
    sign(made, keys[0], made / "model.sig")
    return made


def found(path: Path, key: Path | None) -> dict[str, tuple[str, str]]:
    issues = audit._signature(path, key)
    return {issue.where: (issue.severity, issue.what) for issue in issues}


def test_a_signed_folder_has_no_finding_and_each_change_has_one(
    folder: Path, keys: tuple[Path, Path, Path]
) -> None:
    _, public, other = keys
    assert found(folder, public) == {}
    assert "not verified" in found(folder, None)["model.sig"][1]
    assert found(folder, other)["model.sig"][0] == "high"
    (folder / "modeling.py").write_text("pass")
    assert found(folder, public)["modeling.py"][0] == "medium"
    (folder / "deep/words.txt").write_text("changed")
    (folder / "config.json").unlink()
    assert {name: severity for name, (severity, _) in found(folder, public).items()} == {
        "config.json": "high",
        "deep/words.txt": "high",
        "modeling.py": "medium",
    }


def test_a_manifest_that_was_changed_with_its_files_does_not_hold(
    folder: Path, keys: tuple[Path, Path, Path]
) -> None:
    import base64
    import hashlib

    signature = folder / "model.sig"
    whole = json.loads(signature.read_text())
    statement = json.loads(base64.b64decode(whole["dsseEnvelope"]["payload"]))
    (folder / "config.json").write_text("[]")
    statement["predicate"]["resources"][0]["digest"] = hashlib.sha256(b"[]").hexdigest()
    whole["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()
    signature.write_text(json.dumps(whole))
    ((where, (severity, what)),) = found(folder, keys[1]).items()
    assert (where, severity) == ("model.sig", "high") and "does not hold" in what


def test_no_manifest_a_broken_one_and_one_that_leaves_the_folder(
    folder: Path, keys: tuple[Path, Path, Path]
) -> None:
    signature = folder / "model.sig"
    for text in ("", "[]", '{"dsseEnvelope": {"payload": "AAAA"}}', "[" * 100_000):
        signature.write_text(text)
        assert found(folder, keys[1])["model.sig"][0] == "high"
        with pytest.raises(UserError):
            audit.signed_digests(signature)
    signature.unlink()
    assert found(folder, None)[str(folder)][0] == "info" and found(folder, keys[1])[str(folder)][0] == "high"


def test_the_verb_verifies_a_file(
    tmp_path: Path, keys: tuple[Path, Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    model = model_file(tmp_path / "small.gguf")
    asked = ["audit", str(model), "--public-key", str(keys[1]), "--json"]

    def severities(code: int) -> list[str]:
        assert cli.main(asked) == code
        return [issue["severity"] for issue in json.loads(capsys.readouterr().out)["findings"]]

    assert "high" in severities(1)
    sign(model, keys[0], tmp_path / "small.gguf.sig")
    assert "high" not in severities(0)
    with model.open("ab") as file:
        file.write(b"\0")
    assert "high" in severities(1)
    assert cli.main([*asked[:2], "--json"]) == 1  # without a key too: the manifest names another file
    assert cli.main([*asked[:2], "--json", "--fail-on", "never"]) == 0
    assert cli.main([*asked[:3], str(tmp_path / "absent.pub")]) == 2
    (tmp_path / "no.pub").write_text("no key")
    capsys.readouterr()
    assert cli.main([*asked[:3], str(tmp_path / "no.pub")]) == 2
    assert "holds no public key in PEM form" in capsys.readouterr().err


def test_a_file_that_is_not_signed_fails_the_verb(folder: Path, keys: tuple[Path, Path, Path]) -> None:
    asked = ["audit", str(folder), "--public-key", str(keys[1]), "--fail-on", "never"]  # it is no whole model
    assert cli.main(asked) == 0
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert cli.main(asked) == 1


def test_a_file_outside_of_the_folder_is_not_the_signed_one(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in (tmp_path / "x", folder / "x"):
        file.write_bytes(b"weights")
    expected = audit.digest(folder / "x")
    assert audit._equal(folder, "x", expected)
    assert not audit._equal(folder, "../x", expected) and not audit._equal(folder, "y", expected)


def test_a_manifest_of_parts_of_files_is_refused(tmp_path: Path) -> None:
    import base64

    signature = tmp_path / "model.sig"
    for name, refused in (("weights:0:100", True), ("weights", False)):
        resources = [{"name": name, "algorithm": "sha256", "digest": "00"}]
        payload = base64.b64encode(json.dumps({"predicate": {"resources": resources}}).encode()).decode()
        signature.write_text(json.dumps({"dsseEnvelope": {"payload": payload}}))
        if refused:
            with pytest.raises(UserError, match="whole files"):
                audit.signed_digests(signature)
        else:
            assert audit.signed_digests(signature) == {name: "00"}
