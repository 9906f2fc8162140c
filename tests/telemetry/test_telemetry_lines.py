"""What gets into a line: no patient unless configured, nothing forged, and the schema of JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.logger import LogLevel
from twisted.python.failure import Failure

from harmonyd import tracing
from harmonyd.dimse.errors import DimseFailure
from harmonyd.privacy import Privacy, path_without_values, said, uid_or_nothing
from harmonyd.telemetry import lines
from harmonyd.testing.log_lines import as_text, complaint, log_schema, wrong_lines

MARK = "DOE^JOHN"


def event(text: str = "x", **fields: Any) -> dict[str, Any]:
    return {"log_format": text, "log_level": LogLevel.info, "log_namespace": "test", "log_time": 1.5, **fields}


@pytest.fixture
def shown() -> Iterator[None]:
    """Patients may be named."""
    Privacy.shows_patients = True
    yield
    Privacy.shows_patients = False


def raised(error: BaseException) -> Failure:
    try:
        raise error
    except BaseException:  # noqa: BLE001 - what is raised is what is tested
        return Failure()


ERRORS = [ValueError(MARK), KeyError(MARK), UnicodeDecodeError("ascii", MARK.encode(), 0, 1, MARK), Exception(MARK)]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("render", [lines.text_line, lines.json_line])
def test_texts_of_foreign_errors_are_withheld(error: Exception, render: Any) -> None:
    """As a field of any name, inside of a failure, and in a traceback; the kind and the place stay."""
    failure = raised(error)
    line = render(event("{why} {again!r} {failed}", why=error, again=error, failed=failure, log_failure=failure))
    assert MARK not in line
    assert type(error).__name__ in line
    assert "test_telemetry_lines.py" in line


def test_texts_are_shown_where_patients_may_be(shown: None) -> None:
    """With patient_identifiers = true nothing is held back."""
    line = lines.text_line(event("{why}", why=ValueError(MARK), log_failure=raised(ValueError(MARK))))
    assert line.count(MARK) >= 2


def test_an_old_style_failure_does_not_bring_its_text() -> None:
    """``twisted.python.log.err`` puts the whole traceback into the message."""
    failure = raised(ValueError(MARK))
    old = event("{log_text}", log_text=f"Unhandled\nValueError: {MARK}", log_failure=failure, isError=1, why=None)
    assert MARK not in lines.text_line(old)
    assert "Unhandled error" in lines.text_line(old)


def test_the_comment_of_a_pacs_is_for_who_asked(shown: None) -> None:
    """It is no part of the text that is logged, unless patients may be named."""
    error = DimseFailure.from_status("C-FIND", 0xC001, "Failed", f"no {MARK}")
    assert error.told.endswith(MARK)
    assert said(error).endswith(MARK)
    Privacy.shows_patients = False
    assert said(error) == "C-FIND ended with status 0xC001 (Failed)"


@pytest.mark.parametrize(
    ("path", "prefix", "logged"),
    [
        ("/dicom/find", "/dicom", "/dicom/find"),
        ("/dicomweb/studies/1.2.3/series", "/dicomweb", "/dicomweb/studies/1.2.3/series"),
        ("/a/b/Patient/4711-1", "/a/b", "/a/b/…/…"),
        ("/dicom/operations/" + "0" * 32, "/dicom", "/dicom/operations/" + "0" * 32),
        ("/dicmweb/studies/DOE%5EJOHN", "", "/dicmweb/studies/…"),
        ("/DOE%5EJOHN", "", "/…"),
        ("/", "", "/"),
        ("*", "", "*"),
    ],
)
def test_paths(path: str, prefix: str, logged: str) -> None:
    """What is configured, words of the interface, and UIDs stay; what else stands in a path may be a patient."""
    assert path_without_values(path, prefix) == logged


def test_a_uid_that_is_none_is_withheld() -> None:
    """A peer may write anything there."""
    assert uid_or_nothing("1.2.3") == "1.2.3"
    line = lines.json_line(event("{sop_instance_uid}", sop_instance_uid=MARK))
    assert MARK not in line


def test_the_trace_of_a_request_is_added() -> None:
    """Where it is known and the same for all requests of that id."""
    tracing.note("r-lines", "a" * 32)
    assert json.loads(lines.json_line(event(request="r-lines")))["trace"] == "a" * 32
    tracing.note("r-lines", "b" * 32)
    assert "trace" not in json.loads(lines.json_line(event(request="r-lines")))


# --- the schema


VALUES = st.one_of(st.text(max_size=300), st.integers(-5, 10**9), st.none(), st.booleans(), st.floats())


@given(st.text(), st.dictionaries(st.sampled_from([key for key, _ in lines.FIELDS.values()]), VALUES))
def test_every_event_becomes_a_line_of_the_schema(text: str, fields: dict[str, Any]) -> None:
    """Whatever is in its fields: one line, ASCII, and what the JSON Schema says (but for numbers out of range)."""
    line = lines.json_line({**event("{given}", given=text), **fields})
    members = json.loads(line)
    assert line.isascii()
    assert line.count("\n") == 1
    assert members.keys() <= log_schema()["properties"].keys()
    errors = [error.validator for error in jsonschema.Draft202012Validator(log_schema()).iter_errors(members)]
    assert set(errors) <= {"minimum", "maximum", "pattern"}
    assert bool(errors) == bool(complaint(line))


def test_the_schema_lists_all_fields() -> None:
    """What the code can write, and what is documented, are the same."""
    jsonschema.Draft202012Validator.check_schema(log_schema())
    own = ["time", "level", "logger", "message", "traceback"]
    assert sorted(log_schema()["properties"]) == sorted([*own, *lines.FIELDS])
    page = (Path(__file__).parents[2] / "docs" / "logs.md").read_text("utf-8")
    for name, rule in log_schema()["properties"].items():
        assert f"| `{name}` | {rule['type']} |" in page


@pytest.mark.parametrize(
    "wrong",
    ['{"time": 1}', "{", '{"more": 1}', '{"level": "loud"}', '{"pid": "1"}', '{"pid": true}', '{"trace": "x"}', "[]"],
)
def test_wrong_lines_are_found(wrong: str) -> None:
    """A member that is not known, of another type, or not as it should be."""
    good = json.loads(lines.json_line(event()))
    line = wrong
    if wrong not in ("{", "[]", '{"time": 1}'):
        line = json.dumps({**good, **json.loads(wrong)})
    assert complaint(json.dumps(good)) == ""
    assert complaint(line if line != "[]" else '{"time": "x"}')
    assert list(wrong_lines(["no JSON\n", json.dumps(good) + "\n", '{"cut": '])) == []


def test_json_lines_as_text() -> None:
    """A test that reads the log of a daemon sees the text form."""
    given_ = event("two\nlines {a}", a="\x1b", request="r1", pid=4, log_failure=raised(OSError(2, "gone")))
    assert as_text(lines.json_line(given_)) == lines.text_line(given_)
