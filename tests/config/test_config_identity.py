"""``user_identity`` of a dicom backend."""

from __future__ import annotations

from pathlib import Path

import pytest

from harmonyd.identity import Credentials

BACKEND = (
    "[backends.b]\nservice = 'dicom'\n[backends.b.options]\naet = 'PACS'\nhost = 'pacs'\nport = 104\n"
    "engine = 'native'\n"
)
WITH_FILE = BACKEND + "user_identity = { username = 'gate', passcode_file = 'passcode' }\n"


def test_name_alone_and_with_a_passcode(loaded, tmp_path: Path) -> None:
    """The passcode is the file's only line, and not to be seen where the configuration is shown."""
    config = loaded(BACKEND + "user_identity = { username = 'gate' }\n")
    assert config.backends["b"].options.user_identity == Credentials("gate")
    (tmp_path / "passcode").write_text("s3cret\n")
    (tmp_path / "passcode").chmod(0o640)
    config = loaded(WITH_FILE)
    assert config.backends["b"].options.user_identity == Credentials("gate", "s3cret")
    assert "s3cret" not in repr(config)
    assert not [warning for warning in config.warnings if "passcode" in warning]


def test_a_file_for_everybody(loaded, tmp_path: Path) -> None:
    """It is read, and there is a warning."""
    (tmp_path / "passcode").write_text("s3cret")
    (tmp_path / "passcode").chmod(0o644)
    assert any("chmod" in warning for warning in loaded(WITH_FILE).warnings)


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "empty"), (b"a\nb", "cannot be printed"), (b"x" * 2000, "more than 1024 bytes"), (b"\xff", "UTF-8")],
)
def test_what_is_no_passcode(problems, tmp_path: Path, content: bytes, said: str) -> None:
    """The message says what is wrong with the file, and not what is in it."""
    (tmp_path / "passcode").write_bytes(content)
    (found,) = problems(WITH_FILE)
    assert "passcode_file" in str(found) and said in str(found)


def test_what_is_missing(problems) -> None:
    """A file that is not there; no name; the engine that tells none."""
    assert "cannot be read" in str(problems(WITH_FILE))
    assert "username" in str(problems(BACKEND + "user_identity = {}\n"))
    assert "native" in str(problems(WITH_FILE.replace("'native'", "'dcmtk'")))
