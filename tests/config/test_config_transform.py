"""``transform`` and ``metadata_transform``: where specifications are found, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from config_kit import MAIN, Loaded, Problems

from harmonyd.config.transform import MAX_SPEC_BYTES

SPEC = [{"operation": "default", "spec": {"a": 1}}]
TYPES = ("transform", "metadata_transform")


def options(loaded: Loaded, text: str, kind: str = "transform", main: str = MAIN) -> Any:
    return loaded(f"[middleware.m]\ntype = '{kind}'\n{text}", main=main).middleware["m"].options


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    "text",
    [
        "spec = [{ operation = 'default', spec = { a = 1 } }]",
        'spec = \'[{"operation": "default", "spec": {"a": 1}}]\'',
        "spec_path = 'in_transforms.json'",
        "spec_path = 'specs/beside.json'",
        "[middleware.m.options]\nspec_path = 'specs/beside.json'",
    ],
)
def test_a_specification_is_found(loaded: Loaded, tmp_path: Path, kind: str, text: str) -> None:
    """It stands in the table, or in a file below ``transforms_path`` or the configuration's folder."""
    for folder, name in (("transforms", "in_transforms.json"), ("specs", "beside.json")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text(json.dumps(SPEC))
    found = options(loaded, text, kind)
    assert found["specification"] == SPEC
    assert (found["apply"], found["fail_on_error"], found["inject_context"]) == ("left", True, False)


def test_transforms_path_says_where(loaded: Loaded, tmp_path: Path) -> None:
    """Harmony's key for the folder."""
    (tmp_path / "jolt").mkdir()
    (tmp_path / "jolt" / "a.json").write_text(json.dumps(SPEC))
    main = MAIN.replace("[proxy]", "[proxy]\ntransforms_path = 'jolt'")
    assert options(loaded, "spec_path = 'a.json'", main=main)["specification"] == SPEC


def test_a_changed_file_is_a_changed_configuration(loaded: Loaded, tmp_path: Path) -> None:
    """A reload sees what is in the file."""
    (tmp_path / "a.json").write_text(json.dumps(SPEC))
    before = loaded("[middleware.m]\ntype = 'transform'\nspec_path = 'a.json'").middleware["m"]
    (tmp_path / "a.json").write_text(json.dumps([{"operation": "sort"}]))
    assert loaded("[middleware.m]\ntype = 'transform'\nspec_path = 'a.json'").middleware["m"] != before


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize(
    ("text", "key", "said"),
    [
        ("", "spec_path", "missing"),
        ("spec_path = 'a.json'\nspec = []", "spec_path", "given beside spec"),
        ("spec_path = 'none.json'", "spec_path", "no such file"),
        ("spec_path = 'bad.json'", "spec_path", "bad.json: not JSON: Expecting"),
        ("spec_path = 'wrong.json'", "spec_path", "wrong.json: operation 1 (shift), at a: "),
        ("spec_path = 'big.json'", "spec_path", "more than"),
        ("spec = 5", "spec", "not a list of operations"),
        ("spec = []", "spec", "not a list of operations"),
        ("spec = [{ operation = 'default', spec = { a = 2024-01-01 } }]", "spec", "not JSON: "),
        ("spec = '['", "spec", "not JSON"),
        ("spec = [{ operation = 'sort' }]\napply = 'up'", "apply", "not one of"),
        ("spec = [{ operation = 'sort' }]\nfail_on_error = 1", "fail_on_error", "not a boolean"),
        ("spec = [{ operation = 'sort' }]\nsides = 'left'", "sides", "unknown key"),
    ],
)
def test_mistakes(problems: Problems, tmp_path: Path, kind: str, text: str, key: str, said: str) -> None:
    """Each is told with its key, a wrong specification with the file, the operation and the place."""
    (tmp_path / "bad.json").write_text("[{")
    (tmp_path / "wrong.json").write_text(json.dumps([{"operation": "shift", "spec": {"a": 5}}]))
    (tmp_path / "big.json").write_text("[" + " " * MAX_SPEC_BYTES + "]")
    found = problems(f"[middleware.m]\ntype = '{kind}'\n{text}")
    assert [problem.key for problem in found] == [key]
    assert said in str(found[0])


@pytest.mark.parametrize(
    ("kind", "text", "key"),
    [
        ("transform", "max_bytes = 10", "max_bytes"),
        ("transform", "content_type = 'text/html'", "content_type"),
        ("transform", "content_type = '+json'", "content_type"),
        ("transform", 'content_type = "application/x\\n+json"', "content_type"),
        ("transform", "transform_target = 'metadata'", "transform_target"),
        ("metadata_transform", "per_record = true", "per_record"),
        ("metadata_transform", "transform_target = 'body'", "transform_target"),
        ("metadata_transform", "apply = 'both'\ntransform_target = 'target_details'", "transform_target"),
        ("json_extractor", "", "spec"),
    ],
)
def test_keys_of_one_type(problems: Problems, kind: str, text: str, key: str) -> None:
    """Each type has keys of its own."""
    found = problems(f"[middleware.m]\ntype = '{kind}'\nspec = [{{ operation = 'sort' }}]\n{text}")
    assert [problem.key for problem in found] == [key]


@pytest.mark.parametrize(("apply", "is_wrong"), [("left", False), ("right", True), ("both", True)])
def test_dicomweb_needs_records(problems: Problems, loaded: Loaded, apply: str, is_wrong: bool) -> None:
    """A DICOMweb endpoint cannot do with an answer that was made one document."""
    text = f"""
    [pipelines.p]
    networks = ["default"]
    endpoints = ["web"]
    middleware = ["m"]
    backends = ["pacs"]
    [endpoints.web]
    service = "dicomweb"
    options = {{ path_prefix = "/dicomweb" }}
    [backends.pacs]
    service = "dicom"
    options = {{ aet = "A", host = "h", port = 1 }}
    [middleware.m]
    type = "transform"
    apply = "{apply}"
    spec = [{{ operation = "sort" }}]
    """
    if is_wrong:
        (found,) = problems(text)
        assert found.key == "middleware" and "per_record" in found.remedy
    else:
        loaded(text)
    loaded(text + "per_record = true\n")
