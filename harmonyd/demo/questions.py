"""The four requests of the demo: what is asked, what the answer must have, and asking it over HTTP."""

from __future__ import annotations

import http.client
import json
import shlex
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from harmonyd.demo.setting import Setting
from harmonyd.dimse.part10 import InstanceHeader

_JSON = {"Content-Type": "application/json"}
_TIMEOUT_SECS = 60.0


@dataclass(frozen=True, slots=True)
class Question:
    """One request, and members that its answer must have."""

    title: str
    url: str
    document: Mapping[str, Any]
    expected: Mapping[str, Any]

    @property
    def operation(self) -> str:
        return self.url.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back; ``status`` 0 when nothing did, and ``problem`` then says why."""

    status: int
    members: Mapping[str, Any] = field(default_factory=dict)
    secs: float = 0.0
    problem: str = ""

    def answers(self, question: Question) -> bool:
        """Whether it is the right answer."""
        members = self.members.items()
        return self.status == http.HTTPStatus.OK and question.expected.items() <= dict(_hashable(members)).items()


def _hashable(members: Any) -> Any:
    return ((key, value) for key, value in members if not isinstance(value, (dict, list)))


def questions(files: Sequence[InstanceHeader], setting: Setting) -> list[Question]:
    """Questions to which the loaded files hold the answers: about the first file's patient, and the study it is in."""
    unique = {file.sop_instance_uid: file for file in files}.values()
    patient = files[0].patient_id
    studies = {file.study_instance_uid for file in unique if file.patient_id == patient}
    study = files[0].study_instance_uid
    instances = Counter(file.study_instance_uid for file in unique)[study]
    whole = {"success": True, "complete": True}
    retrieve = {"StudyInstanceUID": study, "QueryRetrieveLevel": "STUDY"}
    retrieved = {**whole, "file_count": instances}
    wanted = {"patient_id": patient, "query_level": "STUDY"}

    def question(operation: str, title: str, document: Mapping[str, Any], expected: Mapping[str, Any]) -> Question:
        return Question(f"C-{operation.upper()}: {title}", f"{setting.base_url}/{operation}", document, expected)

    return [
        question("echo", "does the PACS answer?", {}, {"success": True, "remote_aet": setting.options.aet}),
        question("find", f"which studies of patient {patient} are there?", wanted, {**whole, "count": len(studies)}),
        question("get", "fetch one of these studies", retrieve, retrieved),
        question("move", "have the PACS send that study to our own receiver", retrieve, retrieved),
    ]


def curl(url: str, document: Mapping[str, Any], *options: str) -> str:
    """A command to paste into a shell."""
    lines = [f"curl -X POST {shlex.quote(url)}", *options]
    if document:
        lines += ["-H 'Content-Type: application/json'", f"-d {shlex.quote(json.dumps(document))}"]
    return " \\\n     ".join(lines)


def ask(question: Question) -> Reply:
    """Send the request and read the whole answer. Blocks."""
    parts = urlsplit(question.url)
    body = json.dumps(question.document).encode() if question.document else b""
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=_TIMEOUT_SECS)
    began_at = time.monotonic()
    try:
        connection.request("POST", parts.path, body, _JSON if body else {})
        response = connection.getresponse()
        members = json.loads(response.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Reply(0, problem=str(error) or type(error).__name__)
    finally:
        connection.close()
    return Reply(response.status, members, time.monotonic() - began_at)
