"""``acknowledge`` of a dicom endpoint, and the statuses that go with it."""

from __future__ import annotations

import pytest

from harmonyd.acknowledge import PipelineAnswers
from harmonyd.config.model import DicomEndpointOptions

OPTIONS = "[endpoints.e]\nservice = 'dicom'\n[endpoints.e.options]\n"
PIPELINE = OPTIONS + "engine = 'native'\nacknowledge = 'pipeline'\n"
STATUS = PIPELINE + "[endpoints.e.options.acknowledge_status]\n"


def test_the_spool_decides_by_default(loaded):
    """With either engine."""
    assert DicomEndpointOptions().acknowledge is None
    for engine in ("native", "dcmtk"):
        text = OPTIONS + f"engine = '{engine}'\nacknowledge = 'spool'\n"
        assert loaded(text).endpoints["e"].options.acknowledge is None


def test_the_pipeline_decides(loaded):
    """With defaults for the time and each status."""
    assert loaded(PIPELINE).endpoints["e"].options.acknowledge == PipelineAnswers()


def test_values_reach_the_model(loaded):
    """In TOML's hexadecimal, as the standard writes them."""
    text = "refused = 0xB006\nfailed = 0xC000\naway = 0xA7FF\ndeadline = 0x0213\n"
    timeout = PIPELINE + "acknowledge_timeout_ms = 2500\n[endpoints.e.options.acknowledge_status]\n"
    assert loaded(timeout + text).endpoints["e"].options.acknowledge == PipelineAnswers(
        2.5, refused=0xB006, failed=0xC000, away=0xA7FF, deadline=0x0213
    )


@pytest.mark.parametrize("key", ["failed", "away", "deadline"])
def test_a_warning_would_lose_the_object(problems, key):
    """Only what middleware does not want may be told to be stored though it is not."""
    [problem] = problems(STATUS + f"{key} = 0xB000\n")
    assert (problem.key, "it would be lost" in problem.what) == (key, True)


@pytest.mark.parametrize("key", ["refused", "failed", "away", "deadline"])
@pytest.mark.parametrize("value", ["0", "0xFF00", "0xFE00", "0x0001", "0x0211", "0x10000", "-1", "true", "'0xA700'"])
def test_no_status_of_a_refusal(problems, key, value):
    """Success, Pending, Cancel, and what is no status of a C-STORE."""
    assert [problem.key for problem in problems(STATUS + f"{key} = {value}\n")] == [key]


def test_what_is_allowed_is_told_in_hexadecimal(problems):
    """As people know it."""
    [problem] = problems(STATUS + "refused = 0x0212\n")
    assert "0xA7nn, 0xA9nn, 0xCnnn" in problem.remedy
    assert "0xB006" in problem.remedy


def test_an_unknown_status_key(problems):
    """A misspelled outcome is not ignored."""
    [problem] = problems(STATUS + "refuse = 0xA700\n")
    assert (problem.key, problem.nearest) == ("refuse", "refused")


def test_storescp_cannot_wait(problems):
    """With the dcmtk engine it is refused, with what to change."""
    [problem] = problems(OPTIONS + "acknowledge = 'pipeline'\n")
    assert problem.key == "acknowledge"
    assert 'engine = "native"' in problem.remedy


def test_there_is_no_order_without_a_queue(problems):
    """``in_order`` would promise what nothing keeps."""
    assert [problem.key for problem in problems(PIPELINE + "in_order = true\n")] == ["in_order"]


@pytest.mark.parametrize("text", ["acknowledge_timeout_ms = 1000\n", "acknowledge_status = { away = 0xA700 }\n"])
def test_without_effect(loaded, text):
    """Keys for the pipeline's answer, where the spool answers, are told."""
    [warning] = [each for each in loaded(OPTIONS + text).warnings if "acknowledge" in each]
    assert 'without acknowledge = "pipeline"' in warning


def test_not_a_key_of_a_backend(problems):
    """It is about what is received."""
    backend = "[backends.b]\nservice = 'dicom'\n[backends.b.options]\naet = 'P'\nhost = 'h'\nport = 104\n"
    assert [problem.key for problem in problems(backend + "acknowledge = 'pipeline'\n")] == ["acknowledge"]
