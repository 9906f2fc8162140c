"""``harmonyd demo``: an embedded PACS with real data, the daemon, and four requests over HTTP with their answers."""

from __future__ import annotations

import dataclasses
import http.client
import json
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

from twisted.internet.defer import Deferred
from twisted.internet.defer import TimeoutError as DeferredTimeout
from twisted.internet.threads import deferToThreadPool

from harmonyd.config.model import Config, DicomBackendOptions, HttpEndpointOptions
from harmonyd.daemon.daemon import Daemon
from harmonyd.daemon.process import EXIT_FAILED, EXIT_OK, run
from harmonyd.dimse.part10 import InstanceHeader, read_header
from harmonyd.errors import HarmonydError
from harmonyd.supervision.api import KeptSpec
from harmonyd.testing.data import demo_files, report_files, sample_files
from harmonyd.testing.pacs import PacsLayout

READY_SECS = 30.0
_SHOWN_ITEMS = 1


class DemoFailed(HarmonydError):
    """The demo cannot go on; the detail says why."""

    title = "The demo failed"


@dataclass(frozen=True, slots=True)
class Setting:
    """What the configuration says, as far as the demo needs it."""

    base_url: str
    backend: str
    options: DicomBackendOptions


@dataclass(frozen=True, slots=True)
class Question:
    """One request, and what its answer must have."""

    operation: str
    document: Mapping[str, Any]
    expected: Mapping[str, Any]


def demo(config_path: Path, *, once: bool) -> int:
    """Run the demo; return the exit status."""

    async def main(daemon: Daemon, reactor: Any) -> int | None:
        setting = _setting(daemon.config)
        files = await deferToThreadPool(reactor, reactor.getThreadPool(), _load, daemon.config, setting)
        await _start_pacs(daemon, reactor, setting)
        await _until_ready(daemon, reactor)
        wrong = [question for question in _questions(files, setting) if not await _ask(reactor, setting, question)]
        if wrong:
            names = ", ".join(question.operation for question in wrong)
            print(f"\nNot as expected: {names}", flush=True)
        if once or wrong:
            return EXIT_FAILED if wrong else EXIT_OK
        print(f"\nAll four answers are right. harmonyd stays on {setting.base_url} until Ctrl-C.", flush=True)
        return None

    return run(config_path, main, _quiet)


def _quiet(config: Config) -> Config:
    return dataclasses.replace(config, logging=dataclasses.replace(config.logging, level="warn"))


def _setting(config: Config) -> Setting:
    """The first http endpoint with a dicom backend behind it."""
    for pipeline in config.pipelines.values():
        backends = [name for name in pipeline.backends if config.backends[name].service == "dicom"]
        endpoints = [config.endpoints[name] for name in pipeline.endpoints if config.endpoints[name].service == "http"]
        network = config.networks[pipeline.networks[0]].http
        if backends and endpoints and network is not None:
            prefix = cast(HttpEndpointOptions, endpoints[0].options).path_prefix
            host = f"[{network.bind_address}]" if ":" in network.bind_address else network.bind_address
            options = cast(DicomBackendOptions, config.backends[backends[0]].options)
            return Setting(f"http://{host}:{network.bind_port}{prefix}", backends[0], options)
    raise DemoFailed("The demo needs a pipeline with an http endpoint and a dicom backend; try examples/default")


def _load(config: Config, setting: Setting) -> list[InstanceHeader]:
    layout = _layout(config, setting)
    shutil.rmtree(layout.folder, ignore_errors=True)
    layout.write()
    files = [*demo_files(), *report_files(), *sample_files(Path.cwd())]
    layout.load(files)
    return [read_header(path) for path in files]


def _layout(config: Config, setting: Setting) -> PacsLayout:
    options = setting.options
    destinations = {options.move_destination_aet: options.incoming_store_port}
    return PacsLayout(config.storage.path / "demo-pacs", options.port, options.aet, destinations)


async def _start_pacs(daemon: Daemon, reactor: Any, setting: Setting) -> None:
    argv = _layout(daemon.config, setting).argv()
    child = daemon.supervisor.keep(KeptSpec("dcmqrscp", "demo", argv, setting.options.port, setting.options.aet))
    try:
        await child.when_ready().addTimeout(READY_SECS, reactor)
    except (DeferredTimeout, HarmonydError):
        raise DemoFailed(f"The embedded PACS does not start: {child.description}") from None


async def _until_ready(daemon: Daemon, reactor: Any) -> None:
    waiting = [child.when_ready() for child in daemon.supervisor.children()]
    for child, ready in zip(daemon.supervisor.children(), waiting, strict=True):
        try:
            await ready.addTimeout(READY_SECS, reactor)
        except (DeferredTimeout, HarmonydError):
            raise DemoFailed(f"{child.full_name} is not ready: {child.description}") from None
    ready_now, checks = daemon.health.ready()
    if not ready_now:
        raise DemoFailed(f"harmonyd is not ready: {checks}")


def _questions(files: list[InstanceHeader], setting: Setting) -> list[Question]:
    per_study = Counter(header.study_instance_uid for header in {file.sop_instance_uid: file for file in files}.values())
    patient = files[0].patient_id
    studies = {header.study_instance_uid for header in files if header.patient_id == patient}
    study, instances = next((uid, count) for uid, count in per_study.items() if uid in studies)
    whole = {"success": True, "complete": True}
    retrieve = {"StudyInstanceUID": study, "QueryRetrieveLevel": "STUDY"}
    found = {**whole, "count": len(studies)}
    retrieved = {**whole, "file_count": instances}
    return [
        Question("echo", {}, {"success": True, "remote_aet": setting.options.aet}),
        Question("find", {"patient_id": patient, "query_level": "STUDY"}, found),
        Question("get", retrieve, retrieved),
        Question("move", retrieve, retrieved),
    ]


async def _ask(reactor: Any, setting: Setting, question: Question) -> bool:
    url = f"{setting.base_url}/{question.operation}"
    body = json.dumps(question.document) if question.document else ""
    data = f" \\\n    -H 'Content-Type: application/json' -d '{body}'" if body else ""
    print(f"\n$ curl -X POST {url}{data}", flush=True)
    status, answer = await deferToThreadPool(reactor, reactor.getThreadPool(), _post, url, body.encode())
    print(_shown(answer), flush=True)
    right = status == 200 and all(answer.get(key) == value for key, value in question.expected.items())
    if not right:
        print(f"NOT AS EXPECTED: HTTP {status}; expected {json.dumps(question.expected)}", flush=True)
    return right


def _post(url: str, body: bytes) -> tuple[int, dict[str, Any]]:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=READY_SECS)
    try:
        connection.request("POST", parts.path, body, {"Content-Type": "application/json"} if body else {})
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def _shown(answer: Mapping[str, Any]) -> str:
    """The answer as it came, long lists cut to their first item."""
    shown: dict[str, Any] = {}
    for key, value in answer.items():
        if isinstance(value, list) and len(value) > _SHOWN_ITEMS:
            shown[key] = [*value[:_SHOWN_ITEMS], f"… and {len(value) - _SHOWN_ITEMS} more"]
        else:
            shown[key] = value
    return json.dumps(shown, ensure_ascii=False)
