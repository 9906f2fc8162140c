"""Reading the log of a DCMTK program (written as ``log_config`` says), line by line, into facts."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from harmonyd.dimse.engine import SubOperations

MAX_KEPT_LINES = 50
_LINE = re.compile(rb"@(\w+)\|(.*)", re.DOTALL)
_STATUS = re.compile(r"0x([0-9a-fA-F]{1,4})(?::\s*(.*))?")
_MESSAGE_HEAD = re.compile(r"=+ INCOMING DIMSE MESSAGE =+")
_DETAIL_HEAD = re.compile(r"(?:Response has )?status detail\b.*:$", re.IGNORECASE)
_REFUSAL_HEADS = ("Association Rejected:", "Association Request Failed:")
_COMMENT = re.compile(r"\(0000,0902\) LO \[(.*?)(?:\]\s+#.*)?$")
_ECHO_RESPONSE = re.compile(r"Received Echo Response \((?:(Success)|.*?0x([0-9a-fA-F]{1,4}))\)")
_FIND_RESPONSE = re.compile(r"Received Find Response (\d+)")
_PENDING = (0xFF00, 0xFF01)
_STATUS_LINE_KEYS = {
    "Completed Suboperations": "completed",
    "Failed Suboperations": "failed",
    "Warning Suboperations": "warning",
    "Remaining Suboperations": "remaining",
}


@dataclass(slots=True)
class Response:
    """A DIMSE response message that ends something: a final status, or the answer to one C-STORE."""

    kind: str
    """Message Type, such as "C-FIND RSP"."""
    status: int | None = None
    status_text: str = ""
    message_id: int | None = None
    """Message ID Being Responded To: storescu numbers its files from 1, those it cannot send included."""
    suboperations: SubOperations = field(default_factory=SubOperations)
    comment: str | None = None


@dataclass(slots=True)
class ToolLog:
    """What a tool said so far. Feed it every line of its output."""

    responses: list[Response] = field(default_factory=list)
    latest: Response | None = None
    """The last response, pending ones included: where those are in the log, nothing else is made of them."""
    find_responses: int = 0
    """Pending C-FIND responses the tool received."""
    accepted: bool = False
    """The association was accepted."""
    complaints: list[str] = field(default_factory=list)
    """Warnings and errors: when there are more than ``MAX_KEPT_LINES``, the first and the last of them."""
    other: list[str] = field(default_factory=list)
    """The first lines that are no log lines (usage texts), at most ``MAX_KEPT_LINES``."""
    _fields: dict[str, str] | None = None
    _in_detail: bool = False
    _in_refusal: bool = False

    def feed(self, line: bytes) -> None:
        """Take in one line, without its newline."""
        matched = _LINE.match(line)
        text = (matched[2] if matched else line).decode("utf-8", "replace")
        if matched is None:
            if len(self.other) < MAX_KEPT_LINES and text.strip():
                self.other.append(text[:500])
        elif matched[1] == b"DEBUG":
            self._debug(text)
        else:
            self._fields, self._in_detail, self._in_refusal = None, False, False
            self._notable(matched[1], text)

    def final(self, kind: str) -> Response | None:
        """The last response of this kind that is not pending."""
        return next((response for response in reversed(self.responses) if response.kind == kind), None)

    def _notable(self, level: bytes, text: str) -> None:
        if level in (b"WARN", b"ERROR", b"FATAL"):
            self._complain(text)
        elif text.startswith("Association Accepted"):
            self.accepted = True
        elif (counted := _FIND_RESPONSE.match(text)) is not None:
            self.find_responses = int(counted[1])
        elif (echoed := _ECHO_RESPONSE.match(text)) is not None:
            # echoscu says its final status in this line only, and exits 0 whatever it is.
            self.responses.append(Response("C-ECHO RSP", 0 if echoed[1] else int(echoed[2], 16)))

    def _complain(self, text: str) -> None:
        if len(self.complaints) == MAX_KEPT_LINES:
            # The last ones say what ended the operation.
            del self.complaints[MAX_KEPT_LINES // 2]
        self.complaints.append(text[:500])

    def _debug(self, text: str) -> None:
        if _MESSAGE_HEAD.fullmatch(text):
            # Also out of a status detail, whose end is not marked. A peer that writes this line into its comment can
            # only say what it could have answered.
            self._fields, self._in_detail, self._in_refusal = {}, False, False
        elif self._in_detail:
            self._detail(text)
        elif _DETAIL_HEAD.match(text):
            self._in_detail = True
        elif self._in_refusal or text.startswith(_REFUSAL_HEADS):
            self._in_refusal = True
            self._complain(text)
        elif self._fields is not None:
            self._message_line(text, self._fields)

    def _message_line(self, text: str, fields: dict[str, str]) -> None:
        if "END DIMSE MESSAGE" in text:
            self.latest = _response(fields)
            if self.latest.status not in _PENDING:
                self.responses.append(self.latest)
            self._fields = None
            return
        key, colon, value = text.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())

    def _detail(self, text: str) -> None:
        comment = _COMMENT.search(text)
        if comment is not None and self.responses and self.responses[-1].comment is None:
            self.responses[-1].comment = "".join(c for c in comment[1] if c.isprintable()).strip()[:64]


def _response(fields: dict[str, str]) -> Response:
    response = Response(fields.get("Message Type", ""), message_id=_count(fields.get("Message ID Being Responded To")))
    status = _STATUS.search(fields.get("DIMSE Status", ""))
    if status is not None:
        response.status, response.status_text = int(status[1], 16), (status[2] or "").strip()
    counters = {name: _count(fields.get(key)) for key, name in _STATUS_LINE_KEYS.items()}
    response.suboperations = SubOperations(**counters)
    return response


def _count(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdecimal() else None
