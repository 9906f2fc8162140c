"""The demo from its start to its end."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.threads import deferToThreadPool

from harmonyd.config.model import Config
from harmonyd.daemon.daemon import Daemon
from harmonyd.daemon.process import EXIT_FAILED, EXIT_OK, run
from harmonyd.demo import screen
from harmonyd.demo.questions import Question, Reply, ask, curl, questions
from harmonyd.demo.setting import DemoFailed, Setting, prepare, setting_of, shown_path, with_engine, with_log_file
from harmonyd.dimse.part10 import DamagedFile, InstanceHeader, read_header
from harmonyd.errors import HarmonydError
from harmonyd.supervision.api import KeptChild, KeptSpec
from harmonyd.testing.data import demo_files, report_files, sample_files

READY_SECS = 30.0
T = TypeVar("T")


def demo(config_path: Path, *, once: bool, engine: str | None = None) -> int:
    """Run the demo; return the exit status: with ``once``, 0 only when all four answers came and were right.

    ``engine``: "dcmtk" or "native", instead of those that the configuration names.
    """
    asked: list[int] = []
    is_running = False

    def adapt(config: Config) -> Config:
        # When it is read again, the demo runs: its ports are taken by itself.
        nonlocal is_running
        config = config if engine is None else with_engine(config, engine)
        adapted = with_log_file(config) if is_running else prepare(config)
        is_running = True
        return adapted

    async def main(daemon: Daemon, reactor: Any) -> int | None:
        status = await _perform(_Stage(daemon, reactor), once=once)
        asked.append(status)
        return status if once or status else None

    status = run(config_path, main, adapt)
    return status or (EXIT_FAILED if once and not asked else EXIT_OK)


class _Stage:
    """What the demo plays on."""

    def __init__(self, daemon: Daemon, reactor: Any) -> None:
        self.daemon = daemon
        self.reactor = reactor
        self.setting: Setting = setting_of(daemon.config)

    async def in_thread(self, function: Callable[..., T], *args: Any) -> T:
        result: T = await deferToThreadPool(self.reactor, self.reactor.getThreadPool(), function, *args)
        return result


async def _perform(stage: _Stage, *, once: bool) -> int:
    began_at = time.monotonic()
    screen.heading("Starting a PACS, and harmonyd in front of it")
    files = await stage.in_thread(_load, stage.setting)
    screen.facts(_facts(stage, files))
    await _start_pacs(stage)
    await _until_ready(stage)
    screen.say(f"\n  ready after {time.monotonic() - began_at:.1f} s")
    asked = questions(files, stage.setting)
    wrong = [question for number, question in enumerate(asked, 1) if not await _asked(stage, number, question)]
    if wrong:
        screen.heading("Not as expected: " + ", ".join(question.operation for question in wrong))
        screen.facts({"log": _log_places(stage)})
        return EXIT_FAILED
    screen.heading("All four answers are right")
    if not once:
        _say_what_next(stage, asked)
    return EXIT_OK


def _facts(stage: _Stage, files: Sequence[InstanceHeader]) -> dict[str, str]:
    setting, config = stage.setting, stage.daemon.config
    options = setting.options
    studies = len({file.study_instance_uid for file in files})
    objects = len({file.sop_instance_uid for file in files})
    move = f"{options.move_destination_aet} on port {options.incoming_store_port}"
    return {
        "PACS": f"DCMTK's dcmqrscp, {options.aet} on port {options.port}, with {objects} objects of {studies} studies",
        "harmonyd": f"{setting.base_url}, and {move} for what the PACS sends",
        "as set in": shown_path(config.path),
        "artifacts": f"{shown_path(config.storage.path)}/dcmtk_find_<id>, dcmtk_get_<id>, dcmtk_move_<id>",
        "log": _log_places(stage),
    }


def _log_places(stage: _Stage) -> str:
    own = stage.daemon.config.logging.file
    children = shown_path(stage.daemon.config.storage.path / "log")
    return f"{'standard error' if own is None else shown_path(own)}; of each child in {children}"


# --- the PACS, and readiness ------------------------------------------------------------------------------------------


def _load(setting: Setting) -> list[InstanceHeader]:
    """Fill a new PACS; what is there from an earlier demo goes. Blocking."""
    layout = setting.layout
    layout.clear()
    layout.write()
    samples = sample_files(Path.cwd())
    headers = {path: header for path in samples if (header := _readable(path)) is not None}
    own = [*demo_files(), *report_files()]
    layout.load([*own, *headers])
    return [*map(read_header, own), *headers.values()]


def _readable(path: Path) -> InstanceHeader | None:
    try:
        return read_header(path)
    except (DamagedFile, OSError) as error:
        print(f"  left out: {shown_path(path)}: {error}", file=sys.stderr)
        return None


async def _start_pacs(stage: _Stage) -> None:
    layout = stage.setting.layout
    spec = KeptSpec("dcmqrscp", "demo", layout.argv(), layout.port, layout.aet)
    await _ready(stage, stage.daemon.supervisor.keep(spec))


async def _until_ready(stage: _Stage) -> None:
    for child in stage.daemon.supervisor.children():
        await _ready(stage, child)
    ready, members = stage.daemon.health.ready()
    if not ready:
        raise DemoFailed(f"harmonyd is not ready: {members}")


async def _ready(stage: _Stage, child: KeptChild) -> None:
    try:
        await child.when_ready().addTimeout(READY_SECS, stage.reactor)
    except (DeferredTimeout, HarmonydError):
        name = f"{child.spec.group}:{child.spec.name}"
        raise DemoFailed(f"{name} does not become ready: {child.description}", hint=_log_places(stage)) from None


# --- questions and answers --------------------------------------------------------------------------------------------


async def _asked(stage: _Stage, number: int, question: Question) -> bool:
    screen.heading(f"{number}. {question.title}")
    screen.say(curl(question.url, question.document) + "\n")
    reply: Reply = await stage.in_thread(ask, question)
    if reply.status:
        screen.say(f"HTTP {reply.status}, after {reply.secs * 1000:.0f} ms:\n{screen.answer(reply.members)}")
    else:
        screen.say(f"no answer: {reply.problem}")
    if reply.answers(question):
        return True
    screen.say(f"\nNOT AS EXPECTED: the answer should be HTTP 200 with {dict(question.expected)}")
    return False


def _say_what_next(stage: _Stage, asked: Sequence[Question]) -> None:
    _echo, find, get, _move = asked
    screen.say("harmonyd and the PACS go on until Ctrl-C. In another terminal, the commands above work, and these:\n")
    screen.say("# the same matches, one a line, each as soon as it comes from the PACS")
    screen.say(curl(find.url, find.document, "-H 'Accept: application/x-ndjson'") + "\n")
    screen.say("# the images of that study as a zip file")
    screen.say(curl(get.url, get.document, "-H 'Accept: application/zip'", "-o study.zip") + "\n")
    for url in stage.setting.dicomweb_urls:
        patient = f"{url}/studies?PatientID={find.document['patient_id']}"
        screen.say("# these studies over DICOMweb, as a viewer asks for them")
        screen.say(f"curl {shlex.quote(patient)}\n")
    if stage.daemon.config.web.documentation:
        screen.say(f"# all that is served, as OpenAPI; for people it is at {stage.setting.root_url}/docs")
        screen.say(f"curl {stage.setting.root_url}/openapi.json -o openapi.json\n")
    screen.say("# what harmonyd says about its own state")
    screen.say(f"curl {stage.setting.root_url}/readyz")
    socket = stage.daemon.config.control.socket
    if socket is not None:
        screen.say("\n# its children, with the stock supervisorctl (from a checkout, without -s too)")
        screen.say(f"supervisorctl -s unix://{socket} status")
