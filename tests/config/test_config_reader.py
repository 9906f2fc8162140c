"""The files on disk."""

from __future__ import annotations

import pytest

from harmonyd.config import ConfigError, load

PIPELINE = '[pipelines.p]\nendpoints = ["e"]\n'


def test_a_syntax_error_names_file_and_line(problems):
    """A file that is not TOML is named with the place in it."""
    found = problems("[endpoints.e]\nservice = http\n")
    assert found[0].file.name == "one.toml"
    assert "line 2" in found[0].what


def test_a_syntax_error_of_the_main_file(write):
    """Without the main file there is nothing else to tell."""
    with pytest.raises(ConfigError, match="not valid TOML"):
        load(write("[proxy\n"))


def test_a_file_that_is_not_utf8(write):
    """Latin-1 text is refused with the byte that shows it."""
    path = write()
    (path.parent / "pipelines" / "latin.toml").write_bytes(b"# M\xfcller\n")
    with pytest.raises(ConfigError, match="not UTF-8 at byte 3"):
        load(path)


def test_a_folder_in_place_of_a_file(write):
    """A folder named like a pipelines file is told, not skipped."""
    path = write()
    (path.parent / "pipelines" / "folder.toml").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        load(path)


def test_other_files_in_the_folder_are_left_alone(write):
    """Only *.toml is read, and no hidden file an editor left."""
    path = write()
    (path.parent / "pipelines" / "README").write_text("no TOML")
    (path.parent / "pipelines" / ".one.toml").write_text("no TOML")
    assert load(path).pipelines == {}


def test_a_missing_pipelines_folder(tmp_path):
    """A pipelines folder that is not there is a mistake."""
    (tmp_path / "config.toml").write_text('[proxy]\nid = "x"\npipelines_path = "pipes"\n')
    with pytest.raises(ConfigError, match="pipes cannot be read") as caught:
        load(tmp_path / "config.toml")
    assert caught.value.problems[0].key == "pipelines_path"


def test_everything_may_be_in_the_main_file(tmp_path):
    """A configuration in one file needs no pipelines folder."""
    text = '[proxy]\nid = "x"\n[pipelines.p]\nendpoints = ["e"]\n[endpoints.e]\nservice = "dicom"\n'
    (tmp_path / "config.toml").write_text(text)
    assert "p" in load(tmp_path / "config.toml").pipelines


def test_a_name_in_two_files_names_both(problems):
    """A name that two files define is told with the other file."""
    text = '[endpoints.e]\nservice = "dicom"\n'
    found = problems(text, two=text)
    assert len(found) == 1
    assert found[0].file.name == "two.toml"
    assert "one.toml" in found[0].what


def test_the_same_name_of_different_kinds_is_allowed(loaded):
    """An endpoint and a backend may share a name."""
    config = loaded('[endpoints.x]\nservice = "dicom"\n', two='[backends.x]\nservice = "echo"\n')
    assert "x" in config.endpoints
    assert "x" in config.backends


def test_a_name_that_could_leave_its_folder_is_refused(problems):
    """Names become folder names, so they have no separators."""
    assert problems('[endpoints."../e"]\nservice = "dicom"\n')[0].table == "endpoints.../e"


def test_a_table_of_the_main_file_in_a_pipelines_file(problems):
    """Daemon-wide tables in a pipelines file would be ignored, so they are refused."""
    found = problems('[logging]\nformat = "json"\n')
    assert (found[0].key, found[0].what) == ("logging", "belongs in config.toml")


def test_an_unknown_table_gets_the_nearest(problems):
    """A mistyped table name is answered with the nearest."""
    assert problems("[endpoint.e]\n")[0].nearest == "endpoints"


def test_targets_are_out_of_scope(problems):
    """Harmony's targets decide where data goes, so they are refused, not ignored."""
    assert problems('[targets.t]\nurl = "x"\n')[0].what == "out of scope"


def test_a_value_in_place_of_a_named_table(problems):
    """A named thing is a table; nothing else is said about one that is not."""
    found = problems("[endpoints]\ne = 3\n")
    assert [(problem.table, problem.key, problem.what) for problem in found] == [("endpoints", "e", "not a table")]


def test_a_value_in_place_of_a_table_is_told_once(problems):
    """A value where [proxy] belongs is told, though two readers need it."""
    found = problems(main="proxy = 3\n")
    assert [problem.what for problem in found] == ["not a table", "missing"]


def test_a_network_may_be_in_a_pipelines_file(loaded):
    """As Harmony does, networks of all files are merged."""
    config = loaded('[network.more.http]\nbind_address = "127.0.0.1"\nbind_port = 8081\n')
    assert sorted(config.networks) == ["default", "more"]


def test_a_pipeline_may_name_what_another_file_defines(loaded):
    """Names reach across files."""
    config = loaded(PIPELINE, two='[endpoints.e]\nservice = "dicom"\n')
    assert config.pipelines["p"].endpoints == ("e",)
