"""What the OpenAPI document says of credentials."""

from __future__ import annotations

from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from harmonyd.config.model import MiddlewareConfig
from harmonyd.describe import Answer, Description, Operation
from harmonyd.permit import Rule
from harmonyd.services.securing import fields_of, in_part, secured
from harmonyd.web.docs_page import page
from harmonyd.web.openapi import openapi

FOUND = Description("tag", "text", (Operation("GET", "/x", "getX", "An x", {200: Answer("It.")}),))


def link(name: str, kind: str, *, optional: bool = False, **more: Any) -> MiddlewareConfig:
    return MiddlewareConfig(name, kind, {"optional": optional, **more})


def rules(*roles: str) -> MiddlewareConfig:
    return MiddlewareConfig("rules", "authorize", {"rules": (Rule(frozenset(roles), frozenset({"find"})),)})


USERS = link("users", "basic_auth")
ROBOTS = link("robots", "api_key", optional=True, header="X-Robot")
TOKENS = link("tokens", "jwt_auth", optional=True)
CERTIFICATES = link("certificates", "client_certificate", optional=True)


@pytest.mark.parametrize(
    ("links", "expected"),
    [
        ([], None),
        ([link("nodes", "calling_aet")], None),
        ([USERS], [{"users": []}]),
        ([ROBOTS, TOKENS, rules("a")], [{"robots": []}, {"tokens": []}]),
        ([ROBOTS, rules("anonymous")], [{"robots": []}, {}]),
        ([ROBOTS], [{"robots": []}, {}]),
        ([USERS, CERTIFICATES, rules("a")], [{"certificates": [], "users": []}]),
    ],
)
def test_what_has_to_be_shown(links: list[MiddlewareConfig], expected: Any) -> None:
    """All that is not optional, and one of what is; nothing where rules let strangers do something."""
    document = openapi("t", [("/p", secured(FOUND, links))])
    OpenAPIV31SpecValidator(document).validate()
    operation = document["paths"]["/p/x"]["get"]
    assert operation.get("security") == expected
    assert ("401" in operation["responses"]) == (expected is not None)
    assert set(document["components"].get("securitySchemes", {})) == {
        item.name for item in links if item.type not in ("authorize", "calling_aet")
    }
    assert (b"Credentials: " in page(document, "/openapi.json")) == (expected is not None)


def test_a_network_and_a_pipeline_both_have_their_say() -> None:
    """What both want; each refusal is described, with what it says."""
    made = secured(secured(FOUND, [ROBOTS, TOKENS, rules("a")]), [USERS])
    assert made.security == ({"users", "robots"}, {"users", "tokens"})
    responses = openapi("t", [("/p", made)])["components"]["responses"]
    assert "WWW-Authenticate" in responses["Problem401"]["headers"]
    assert "Retry-After" in responses["Problem429"]["headers"]
    assert "Problem403" in responses
    assert in_part(FOUND, [USERS]).security == ({"users"}, set())
    assert in_part(FOUND, []).security == ()


def test_fields_that_the_configuration_chose() -> None:
    """A page of another origin has to be allowed to send them."""
    assert fields_of([USERS, ROBOTS, TOKENS]) == ("X-Robot",)
