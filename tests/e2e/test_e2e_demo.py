"""``harmonyd demo`` as a newcomer meets it: the four answers, the printed commands, and what stands in its way."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen
from zipfile import ZipFile

import pytest
from cli_kit import COMMAND, Example, RunningDemo, commands_in, example_in, harmonyd

from harmonyd.testing.data import demo_files, make_study
from harmonyd.testing.pacs import RunningPacs
from harmonyd.testing.processes import port_is_free, wait_until

SAMPLES = 3
F_SETPIPE_SZ = 1031
"""fcntl(2); the fcntl module has it from Python 3.10 on only where it was built with it."""


@pytest.fixture(scope="module")
def staying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDemo]:
    """A demo that goes on, with samples of the developer's own, one of which is no DICOM file."""
    folder = tmp_path_factory.mktemp("staying")
    make_study(folder / "dev" / "samples", SAMPLES, patient_id="SAMPLE-1", size=16)
    (folder / "dev" / "samples" / "broken.dcm").write_bytes(b"not DICOM")
    with RunningDemo(example_in(folder), folder) as running:
        yield running


@pytest.fixture
def example(tmp_path: Path) -> Example:
    return example_in(tmp_path)


def pasted(command: str, folder: Path) -> str:
    """Run a command as a shell does when it is pasted; its output."""
    ran = subprocess.run(["bash", "-e"], input=command, cwd=folder, capture_output=True, text=True, check=True)
    return ran.stdout


def test_the_demo_says_what_it_starts(staying: RunningDemo) -> None:
    """A newcomer reads which PACS, which address, which configuration, and where log and artifacts are."""
    example = staying.example
    start = staying.output.partition("== 1.")[0]
    assert f"DEMO_PACS on port {example.pacs_port}" in start
    assert f"with {len(demo_files()) + 2 + SAMPLES} objects" in start
    assert f"{example.base_url}/dicom" in start
    assert "example/config.toml" in start
    assert "example/tmp/dcmtk_find_<id>" in start
    log = staying.cwd / "example" / "tmp" / "log" / "harmonyd.log"
    assert str(log.relative_to(staying.cwd)) in start
    assert "POST /dicom/echo 200" in log.read_text()
    assert "left out: dev/samples/broken.dcm" in start


def test_the_printed_commands_work_when_pasted(staying: RunningDemo, tmp_path: Path) -> None:
    """Each command goes through a shell as it was printed, and gives the answer that was printed."""
    echo, find, get, move, lines, archive, dicomweb, openapi, ready = commands_in(staying.output)
    assert json.loads(pasted(echo, tmp_path))["remote_aet"] == "DEMO_PACS"
    found = json.loads(pasted(find, tmp_path))
    assert (found["success"], found["count"]) == (True, len(found["matches"]))
    counts = []
    for command in (get, move):
        answer = json.loads(pasted(command, tmp_path))
        assert (answer["success"], answer["complete"]) == (True, True)
        counts.append(answer["file_count"])
        assert answer["file_count"] == len(list(Path(answer["folder_path"]).iterdir()))
    assert counts[0] == counts[1] > 1
    matches = [json.loads(line) for line in pasted(lines, tmp_path).splitlines()]
    assert {json.dumps(match) for match in matches} == {json.dumps(match) for match in found["matches"]}
    pasted(archive, tmp_path)
    assert len(ZipFile(tmp_path / "study.zip").namelist()) == counts[0]
    assert len(json.loads(pasted(dicomweb, tmp_path))) == found["count"]
    pasted(openapi, tmp_path)
    assert "/dicomweb/studies" in json.loads((tmp_path / "openapi.json").read_text())["paths"]
    assert json.loads(pasted(ready, tmp_path))["status"] == "ready"
    for text in (f'"count": {found["count"]}', f'"file_count": {counts[0]}'):
        assert text in staying.output


def test_the_configuration_can_be_read_again(staying: RunningDemo) -> None:
    """``supervisorctl reread`` of a demo that runs does not stumble over the demo's own ports."""
    socket = staying.example.storage / "run" / "control.sock"
    command = [sys.executable, "-m", "supervisor.supervisorctl", "-s", f"unix://{socket}", "reread"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False, cwd=staying.cwd)
    assert (said.returncode, said.stdout.strip()) == (0, "No config updates to processes")


def test_samples_of_the_developer_are_in_the_pacs(staying: RunningDemo) -> None:
    """What lies in dev/samples can be found and fetched."""
    answer = ask(staying, "get", {"StudyInstanceUID": sample_study(staying)})
    assert answer["file_count"] == SAMPLES


def sample_study(demo: RunningDemo) -> str:
    [match] = ask(demo, "find", {"patient_id": "SAMPLE-1", "query_level": "STUDY"})["matches"]
    uid: str = match["0020000D"]["Value"][0]
    return uid


def ask(demo: RunningDemo, operation: str, document: Any) -> Any:
    url, headers = f"{demo.example.base_url}/dicom/{operation}", {"Content-Type": "application/json"}
    with urlopen(Request(url, json.dumps(document).encode(), headers), timeout=20) as response:
        return json.load(response)


def test_a_second_demo_says_who_has_the_port(staying: RunningDemo, tmp_path: Path) -> None:
    """It names the pid and the command that listens, exits 1, leaves no child, and the first one goes on."""
    second = example_in(tmp_path)
    text = second.config.read_text()
    second.config.write_text(text.replace(str(second.http_port), str(staying.example.http_port)))
    ended = harmonyd("demo", "--once", "--config", second.config, cwd=tmp_path)
    assert ended.returncode == 1
    assert f"port {staying.example.http_port} is held by pid {staying.process.pid}" in ended.stderr
    assert "harmonyd demo --config" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert ended.stdout == ""
    assert all(port_is_free(port) for port in (second.pacs_port, second.receiver_port, second.endpoint_port))
    assert ask(staying, "echo", {})["success"]


def test_killed_and_started_again_straight_away(example: Example, tmp_path: Path) -> None:
    """After kill -9 nothing is left that would be in the way of the next demo."""
    with RunningDemo(example, tmp_path) as demo:
        demo.signal(signal.SIGKILL)
        again = harmonyd("demo", "--once", "--config", example.config, cwd=tmp_path)
        assert (again.returncode, again.stderr) == (0, "")
        assert "All four answers are right" in again.stdout
        assert "Ctrl-C" not in again.stdout


def test_without_dcmtk_in_between(example: Example, tmp_path: Path) -> None:
    """``--engine native``: the same four answers, and of DCMTK's programs only the PACS runs."""
    ended = harmonyd("demo", "--once", "--engine", "native", "--config", example.config, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "All four answers are right" in ended.stdout
    assert {path.name.partition("-")[0] for path in (example.storage / "log").iterdir()} == {"dcmqrscp", "harmonyd.log"}


def test_ctrl_c_ends_it(example: Example, tmp_path: Path) -> None:
    """SIGINT stops PACS and daemon; the exit status is 0, and nothing is left."""
    with RunningDemo(example, tmp_path) as demo:
        assert demo.signal(signal.SIGINT) == 0
        demo.assert_nothing_left()
    assert "Traceback" not in demo.output


def test_a_wrong_answer_fails_the_demo(example: Example, tmp_path: Path) -> None:
    """One answer of four that is not what the data say: it is named, and the exit status is not 0."""
    example.replace('local_aet = "HARMONY_SCU"', 'local_aet = "HARMONY_SCU"\nmax_results = 1')
    ended = harmonyd("demo", "--once", "--config", example.config, cwd=tmp_path)
    assert ended.returncode == 1
    assert "NOT AS EXPECTED: the answer should be HTTP 200 with {'success': True, 'complete': True" in ended.stdout
    assert "== Not as expected: find =" in ended.stdout
    assert "All four" not in ended.stdout


def test_a_strangers_pacs_in_the_way(example: Example, tmp_path: Path) -> None:
    """A PACS of the same AE title with other data on the same port: the demo does not take it for its own."""
    study = make_study(tmp_path / "study", 1)
    with RunningPacs(tmp_path / "pacs", files=study.files, aet="DEMO_PACS", port=example.pacs_port) as stranger:
        ended = harmonyd("demo", "--once", "--config", example.config, cwd=tmp_path)
        assert ended.returncode == 1
        assert f"port {example.pacs_port} is held by pid {stranger.pid}" in ended.stderr
        assert "dcmqrscp" in ended.stderr
        assert stranger.echo()
    assert all(map(port_is_free, example.ports()))


def test_a_real_pacs_is_not_touched(example: Example, tmp_path: Path) -> None:
    """With a configuration that names a PACS elsewhere, the demo starts nothing and asks it nothing."""
    example.replace('host = "127.0.0.1"', 'host = "pacs.example"')
    ended = harmonyd("demo", "--once", "--config", example.config, cwd=tmp_path)
    assert ended.returncode == 1
    assert f"the backend is DEMO_PACS at pacs.example:{example.pacs_port}" in ended.stderr
    assert not example.storage.exists()


def test_interrupted_before_the_end_is_no_success(example: Example, tmp_path: Path) -> None:
    """``--once`` that was interrupted has not shown four right answers, and does not exit with 0."""
    reading, writing = os.pipe()
    fcntl.fcntl(writing, F_SETPIPE_SZ, 4096)  # less than the demo has to say, which so waits in the third answer
    arguments = [*COMMAND, "demo", "--once", "--config", str(example.config)]
    with (
        os.fdopen(reading, "rb") as output,
        subprocess.Popen(arguments, stdin=subprocess.DEVNULL, stdout=writing, cwd=tmp_path) as process,
    ):
        os.close(writing)
        wait_until(lambda: any(example.storage.glob("dcmtk_get_*.json")), "the third answer is there")
        process.send_signal(signal.SIGINT)
        wait_until(lambda: not _is_pending(process.pid, signal.SIGINT), "the signal has arrived")
        said = output.read()
        assert process.wait(20) == 1
    assert b"All four" not in said


def _is_pending(pid: int, number: int) -> bool:
    fields = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(fields["ShdPnd"], 16) & 1 << (number - 1))
