"""Which methods can be called, and with what: a table made once, in which a stranger's method name is looked up.

Names have two parts, ``namespace.method``; nothing is ever looked up by ``getattr`` (CVE-2017-11610).
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import FunctionType
from typing import Any, get_type_hints

from supervisor.xmlrpc import Faults, RPCError
from twisted.logger import Logger

from harmonyd.config.errors import ConfigError
from harmonyd.errors import HarmonydError

_XML_RPC_TYPES: Mapping[Any, str] = {int: "int", str: "string", bool: "boolean", list: "array", dict: "struct"}
_MAX_LOGGED_CHARS = 200
_log = Logger("harmonyd.control")


@dataclass(frozen=True, slots=True)
class Method:
    """One entry of the table."""

    function: Callable[..., Any]
    signature: inspect.Signature
    types: Mapping[str, Any]
    changes: bool
    """It changes something, and so is logged with who asked for it."""

    @property
    def help(self) -> str:
        return inspect.getdoc(self.function) or ""

    @property
    def xml_types(self) -> list[str]:
        """Result, then parameters."""
        hints = [self.types["return"], *(self.types[name] for name in self.signature.parameters)]
        return [_XML_RPC_TYPES.get(getattr(hint, "__origin__", hint), "string") for hint in hints]

    def check(self, parameters: tuple[Any, ...]) -> None:
        """Raises ``RPCError`` INCORRECT_PARAMETERS."""
        try:
            bound = self.signature.bind(*parameters)
        except TypeError as error:
            raise RPCError(Faults.INCORRECT_PARAMETERS, str(error)) from None
        for name, value in bound.arguments.items():
            kind = self.types[name]
            kind = getattr(kind, "__origin__", kind)
            # supervisor's clients send 0 and 1 for booleans.
            if not isinstance(value, (bool, int) if kind is bool else kind):
                raise RPCError(Faults.INCORRECT_PARAMETERS, f"{name} is of the wrong type")


def changes(function: Any) -> Any:
    """Mark a method that changes something."""
    function.changes = True
    return function


def public_methods(namespace: str, *parts: object) -> dict[str, Method]:
    """The methods of ``parts`` without a leading underscore, by full name."""
    return {
        f"{namespace}.{name}": _method(getattr(part, name))
        for part in parts
        for name, member in vars(type(part)).items()
        if isinstance(member, FunctionType) and not name.startswith("_")
    }


def _method(function: Callable[..., Any]) -> Method:
    return Method(
        function, inspect.signature(function), get_type_hints(function), bool(getattr(function, "changes", False))
    )


class Dispatcher:
    """Calls methods by name."""

    def __init__(self, methods: Mapping[str, Method]) -> None:
        self.methods = methods

    async def call(self, name: str, parameters: tuple[Any, ...], caller: str) -> Any:
        """Return the result. Raises ``RPCError`` and nothing else."""
        method = self.methods.get(name)
        if method is None:
            raise RPCError(Faults.UNKNOWN_METHOD)
        method.check(parameters)
        if method.changes:
            given = ", ".join(repr(parameter)[:_MAX_LOGGED_CHARS] for parameter in parameters)
            _log.info("{method}({given}) asked for by {caller}", method=name, given=given, caller=caller)
        try:
            result = method.function(*parameters)
            return await result if isinstance(result, Awaitable) else result
        except RPCError:
            raise
        except ConfigError as error:
            raise RPCError(Faults.CANT_REREAD, str(error)) from None
        except HarmonydError as error:
            raise RPCError(Faults.FAILED, error.detail) from None
        except Exception:  # noqa: BLE001 - the boundary: our own defect must not take the connection with it
            _log.failure("{method} failed", method=name)
            raise RPCError(Faults.FAILED, "an error inside harmonyd; its log says more") from None
