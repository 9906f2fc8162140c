"""The page for people at ``/docs``: an OpenAPI document of ours as HTML. No script, and nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files
from typing import Any

_STYLE = files("harmonyd.web").joinpath("docs_page.css").read_text("utf-8")
_STYLE_HASH = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
SECURITY_POLICY = (
    f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Content-Security-Policy: its own style, and nothing else at all."""
_METHODS = ("get", "head", "post", "put", "patch", "delete", "options", "trace")
Found = tuple[str, str, Mapping[str, Any]]
"""Path, method and operation."""


def page(document: Mapping[str, Any], source: str) -> bytes:
    """Return the HTML of ``document``, which is served at the path ``source``."""
    by_tag = _by_tag(document)
    tags = {tag["name"]: tag.get("description", "") for tag in document["tags"]}
    info = document["info"]
    return "".join(
        [
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(info['title'])}: HTTP interface</title><style>{_STYLE}</style></head>\n<body>",
            *_navigation(info, by_tag),
            f'<main><h1>{escape(info["title"])}</h1><p>harmonyd {escape(info["version"])}. The same for programs: ',
            f'<a href="{escape(source)}">OpenAPI {escape(document["openapi"])}</a>. HEAD goes wherever GET goes.</p>\n',
            *(part for tag, text in tags.items() for part in _section(document, tag, text, by_tag.get(tag, ()))),
            *_schemas(document["components"]["schemas"]),
            "</main></body></html>\n",
        ]
    ).encode()


def _by_tag(document: Mapping[str, Any]) -> dict[str, list[Found]]:
    found: dict[str, list[Found]] = {}
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                found.setdefault(item[method]["tags"][0], []).append((path, method, item[method]))
    return found


def _navigation(info: Mapping[str, Any], by_tag: Mapping[str, Sequence[Found]]) -> Iterator[str]:
    yield f'<nav aria-label="Operations"><p class="title">{escape(info["title"])}</p>'
    for tag, operations in by_tag.items():
        yield f"<h2>{escape(tag)}</h2><ul>"
        for path, method, operation in operations:
            where = f'href="#{escape(operation["operationId"])}"'
            yield f'<li><a {where} title="{escape(path)}"><b class={method}>{method.upper()}</b> '
            yield f"<span>{escape(operation['summary'])}</span></a></li>"
        yield "</ul>"
    yield '<h2><a href="#schemas">Schemas</a></h2></nav>\n'


def _section(document: Mapping[str, Any], tag: str, text: str, operations: Sequence[Found]) -> Iterator[str]:
    yield f"<section><h2>{escape(tag)}</h2><p>{escape(text)}</p>\n"
    for path, method, operation in operations:
        # A link into what is folded unfolds it; a link to the whole would not.
        yield f"<details><summary><b class={method}>{method.upper()}</b> <code>{_breakable(path)}</code> "
        yield f'<span>{escape(operation["summary"])}</span></summary><div id="{escape(operation["operationId"])}">'
        if "description" in operation:
            yield f"<p>{escape(operation['description'])}</p>"
        yield from _needs(operation.get("security", ()))
        yield from _parameters(operation.get("parameters", ()))
        yield from _body(operation.get("requestBody"))
        yield from _answers(document, operation["responses"])
        yield "</div></details>\n"
    yield "</section>\n"


def _needs(security: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The credentials of which one set will do."""
    ways = [" and ".join(f"<code>{escape(name)}</code>" for name in way) or "nothing" for way in security]
    if ways:
        yield f"<p>Credentials: {', or '.join(ways)}</p>"


def _parameters(parameters: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    if not parameters:
        return
    yield "<h3>Parameters</h3><table>"
    for each in parameters:
        schema = _shown(each["schema"])
        yield f"<tr><th><code>{escape(each['name'])}</code><small>{escape(each['in'])}</small></th>"
        yield f"<td>{escape(each['description'])}<small>{schema}</small></td></tr>"
    yield "</table>"


def _body(body: Mapping[str, Any] | None) -> Iterator[str]:
    if body is None:
        return
    yield f"<h3>Body{'' if body['required'] else ' (may be left out)'}</h3><ul>"
    yield from _media(body["content"])
    yield "</ul>"


def _answers(document: Mapping[str, Any], responses: Mapping[str, Any]) -> Iterator[str]:
    yield "<h3>Answers</h3><table>"
    for status, given in responses.items():
        name = given.get("$ref", "").rpartition("/")[2]
        answer = document["components"]["responses"][name] if name else given
        fields = (
            f"<li><code>{escape(field)}</code>: {escape(header['description'])}</li>"
            for field, header in answer.get("headers", {}).items()
            if "description" in header
        )
        yield f"<tr class=s{escape(status[0])}><th><code>{escape(status)}</code></th>"
        yield f"<td>{escape(answer['description'])}<ul>"
        yield from _media(answer.get("content", {}))
        yield from fields
        yield "</ul></td></tr>"
    yield "</table>"


def _media(content: Mapping[str, Any]) -> Iterator[str]:
    for name, given in content.items():
        shown = f" {_shown(given['schema'])}" if "schema" in given else ""
        yield f"<li><code>{escape(name)}</code>{shown}</li>"


def _schemas(schemas: Mapping[str, Any]) -> Iterator[str]:
    yield '<section id="schemas"><h2>Schemas</h2>\n'
    for name, schema in schemas.items():
        text = escape(json.dumps(schema, indent=2, ensure_ascii=False))
        yield f"<details><summary><code>{escape(name)}</code> <span>{escape(schema.get('description', ''))}</span>"
        yield f'</summary><div id="schema-{escape(name)}"><pre>{text}</pre></div></details>\n'
    yield "</section>"


def _shown(schema: Mapping[str, Any]) -> str:
    """A schema in a few words; the names of those that have one are links."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#schema-{escape(name)}">{escape(name)}</a>'
    if schema.get("type") == "array":
        return f"list of {_shown(schema['items'])}"
    words = [escape(" or ".join(_types(schema)))]
    words += [f"<code>{escape(json.dumps(value))}</code>" for value in schema.get("enum", ())]
    words += [f"{key} {schema[key]}" for key in ("minimum", "maximum", "maxLength") if key in schema]
    words += [f"like <code>{escape(schema['pattern'])}</code>"] if "pattern" in schema else []
    return ", ".join(filter(None, words))


def _types(schema: Mapping[str, Any]) -> list[str]:
    found = schema.get("type", [])
    return [found] if isinstance(found, str) else list(found)


def _breakable(path: str) -> str:
    """A long path may be broken before its slashes."""
    return escape(path).replace("/", "<wbr>/")
