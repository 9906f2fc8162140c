"""XML-RPC calls and answers as bytes. What comes in is a stranger's: no DTD, no entities, a bounded size.

The standard library's ``xmlrpc.client`` builds the values; the parser is set up here, because its own takes DTDs.
"""

from __future__ import annotations

import xmlrpc.client
from typing import Any
from xml.parsers import expat

from supervisor.xmlrpc import RPCError

from harmonyd.control.text import clean, cleaned
from harmonyd.errors import BadRequest

MAX_CALL_BYTES = 1_000_000
MAX_DEPTH = 100


class BadCall(BadRequest):
    """The body is no XML-RPC call."""

    title = "Not an XML-RPC call"


class _Parser:
    """expat feeding the standard library's unmarshaller."""

    def __init__(self) -> None:
        self._values = xmlrpc.client.Unmarshaller(use_builtin_types=True)
        self._depth = 0
        self._parser = expat.ParserCreate()
        self._parser.buffer_text = True
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._values.data
        self._parser.StartDoctypeDeclHandler = self._refuse_doctype
        self._values.xml("", None)  # what expat gives is text already, and needs no decoding

    def parse(self, body: bytes) -> tuple[tuple[Any, ...], str | None]:
        self._parser.Parse(body, True)
        return tuple(self._values.close()), self._values.getmethodname()

    def _start(self, tag: str, attributes: dict[str, str]) -> None:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise BadCall("elements are nested too deeply")
        self._values.start(tag, attributes)

    def _end(self, tag: str) -> None:
        self._depth -= 1
        self._values.end(tag)

    def _refuse_doctype(self, *_: object) -> None:
        raise BadCall("a document type declaration is not allowed here")


def parse(body: bytes) -> tuple[str, tuple[Any, ...]]:
    """Method name and parameters. Raises ``BadCall``."""
    try:
        parameters, method = _Parser().parse(body)
    except BadCall:
        raise
    except Exception as error:  # noqa: BLE001 - the unmarshaller raises whatever the values make it raise
        raise BadCall(f"the body is not an XML-RPC call: {error}") from None
    if not method:
        raise BadCall("the body names no method")
    return method, parameters


def answer(value: Any) -> bytes:
    """The document for a result."""
    return xmlrpc.client.dumps((cleaned(value),), methodresponse=True).encode("utf-8")


def fault(error: RPCError) -> bytes:
    """The document for a fault."""
    return xmlrpc.client.dumps(xmlrpc.client.Fault(error.code, clean(error.text))).encode("utf-8")
