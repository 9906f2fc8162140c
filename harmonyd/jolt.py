"""JOLT specifications (JSON to JSON): compiled and applied by jolt-py, which is loaded only where there is one.

A specification is a list of operations, each with ``operation`` (shift, default, remove, sort, cardinality, modify-…)
and ``spec``; https://github.com/bazaarvoice/jolt defines what they mean.
"""

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from harmonyd.errors import HarmonydError
from harmonyd.privacy import said

if TYPE_CHECKING:
    from pyjolt import Chainr

MAX_PADDING = 1_000_000
"""Empty array elements that one application may make: an index may come from what a client sent (``out[&1]``)."""
_MAX_SHOWN = 300
_REMARKS = ("//", "_", "comment", "description")
_padding = threading.local()


class BadSpecification(HarmonydError):
    """A specification that is none. The text says which operation, where in it, and what is wrong."""

    title = "Misconfigured transformation"


class TransformFailed(HarmonydError):
    """A specification could not be applied to what there was."""

    title = "The transformation failed"


class Chain:
    """A compiled specification. May be applied by several threads at once."""

    def __init__(self, specification: Any) -> None:
        """Raises ``BadSpecification``."""
        if not isinstance(specification, list) or not specification:
            raise BadSpecification("not a list of operations, or an empty one")
        _bound_arrays()
        self._steps = [(_name(number, step), _compiled(number, step)) for number, step in enumerate(specification, 1)]

    def apply(self, data: Any, context: Mapping[str, Any] | None = None) -> Any:
        """Return what becomes of ``data``, which is left as it is. Blocking. Raises ``TransformFailed``.

        ``context`` is what modify operations find under ``^``.
        """
        _padding.left = MAX_PADDING
        for name, step in self._steps:
            try:
                data = step.apply(data, dict(context or {}))
            except RecursionError as error:
                raise TransformFailed(f"{name}: the data is nested too deeply.") from error
            except Exception as error:
                # What the library raises for data that does not fit is not always of its own kind.
                raise TransformFailed(f"{name}: {_about(error)}.") from error
        return data


def decode(text: str | bytes) -> Any:
    """Return JSON (RFC 8259) decoded. Raises ``ValueError`` with what is wrong, and where."""
    try:
        return json.loads(text, parse_constant=_no_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not UTF-8 at byte {error.start}") from error


def encode(data: Any) -> bytes:
    """Return JSON text in UTF-8. Raises ``TransformFailed`` for what JSON cannot say (infinite numbers)."""
    try:
        return json.dumps(data, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
    except (ValueError, RecursionError) as error:
        raise TransformFailed(f"The result cannot be written as JSON: {_about(error)}.") from error


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _name(number: int, step: Any) -> str:
    operation = step.get("operation") if isinstance(step, dict) else None
    return f"operation {number} ({operation})" if isinstance(operation, str) else f"operation {number}"


def _compiled(number: int, step: Any) -> Chainr:
    name = _name(number, step)
    if not isinstance(step, dict) or not isinstance(step.get("operation"), str):
        raise BadSpecification(f'{name}: not an object with "operation" and "spec"')
    unknown = [key for key in step if key not in ("operation", "spec") and not key.startswith(_REMARKS)]
    if unknown:
        raise BadSpecification(f'{name}: unknown member "{unknown[0]}"; remarks begin with // or _')
    made = _built(step)
    if isinstance(made, str):
        place = _place(step)
        raise BadSpecification(f"{name}{f', at {place}' if place else ''}: {made}")
    return made


def _built(step: Mapping[str, Any]) -> Chainr | str:
    """The compiled operation, or a complaint."""
    from pyjolt import Chainr

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # an unknown function: the library goes on without it
            return Chainr.from_spec([dict(step)])
    except RecursionError:
        return "it is nested too deeply"
    except Exception as error:  # noqa: BLE001 - a specification may be wrong in ways that the library does not expect
        return _known_operations() if "Unknown operation" in str(error) else _said(error)


def _known_operations() -> str:
    from pyjolt import chainr

    return f"unknown operation; known: {', '.join(sorted(key for key in chainr._OPERATIONS if '.' not in key))}"


def _place(step: Mapping[str, Any]) -> str:
    """The keys that lead to what is wrong, as far as it is wrong by itself."""
    path: list[str] = []
    below = step.get("spec")
    while isinstance(below, dict):
        wrong = next((key for key in below if _is_wrong(step, [*path, key], below[key])), None)
        if wrong is None:
            break
        path.append(wrong)
        below = below[wrong]
    return " / ".join(path)


def _is_wrong(step: Mapping[str, Any], path: list[str], below: Any) -> bool:
    for key in reversed(path):
        below = {key: below}
    return isinstance(_built({**step, "spec": below}), str)


def _said(error: Exception) -> str:
    return _shortened(str(error)) or type(error).__name__


def _about(error: Exception) -> str:
    """The same for data: the library's own errors speak of the specification, any other may quote the data."""
    is_the_librarys = type(error).__module__.partition(".")[0] == "pyjolt"
    return _said(error) if is_the_librarys else _shortened(said(error))


def _shortened(given: str) -> str:
    text = " ".join(given.split()).removesuffix(".")
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 1] + "…"


def _bound_arrays() -> None:
    """Count the empty elements that the library puts before an index, which it makes any number of."""
    from pyjolt import TransformError
    from pyjolt._common import paths, util

    step: Any = paths._ArrayStep
    if getattr(step, "is_bounded", False):
        return
    unbounded = step.overwrite_set

    def overwrite_set(self: Any, tree: list[Any], key: str, data: Any) -> Any:
        _padding.left -= max(0, util.parse_int(key) - len(tree))
        if _padding.left < 0:
            raise TransformError(f"an array with an element {key} would be mostly empty")
        return unbounded(self, tree, key, data)

    step.overwrite_set = overwrite_set
    step.is_bounded = True
