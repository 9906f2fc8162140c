"""A pipeline holds requests and inbound objects to their permits, whatever kind of backend it has."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.task import Clock

from harmonyd.audit.api import AuditEvent
from harmonyd.bodies import EmptyBody
from harmonyd.envelope import RequestEnvelope, ResponseEnvelope
from harmonyd.errors import Forbidden, Unauthorized
from harmonyd.middleware.auth.authorize import Authorize
from harmonyd.middleware.auth.guard import Guard
from harmonyd.middleware.auth.peers import CallingAet, ClientCertificate
from harmonyd.permit import Element, Rule
from harmonyd.pipeline.errors import MiddlewareRefused
from harmonyd.pipeline.pipeline import Pipeline
from harmonyd.subject import Caller, PeerCertificate

PATIENT = "00100020"
RULES = [
    Rule(frozenset({"modality"}), frozenset({"store"}), frozenset({"archive"})),
    Rule(frozenset({"ward"}), frozenset({"store"}), only=(Element(PATIENT, "PatientID", ("W*",)),)),
    Rule(frozenset({"client"}), frozenset({"forward"}), frozenset({"web"})),
]
AETS = {
    "CT1": (frozenset({"modality"}), (ip_network("10.1.0.0/16"),)),
    "WARD": (frozenset({"ward"}), ()),
}
CERTIFICATES = {"ws7.example.org": frozenset({"client"}), "ab" * 32: frozenset({"client"})}


async def in_thread(function: Any, *args: Any) -> Any:
    return function(*args)


class Target:
    """A backend that notes the header fields it gets."""

    def __init__(self, action: str | None = None) -> None:
        self.seen: list[dict[str, str]] = []
        if action:
            self.action = action

    async def send(self, request: RequestEnvelope) -> ResponseEnvelope:
        self.seen.append(dict(request.headers))
        return ResponseEnvelope()


class Site:
    def __init__(self) -> None:
        self.events: list[AuditEvent] = []
        guard = Guard(Clock(), in_thread, self.events.append)
        self.backends = {"archive": Target("store"), "web": Target(), "other": Target("store")}
        links = [
            CallingAet("senders", {"aets": AETS, "optional": True}, guard),
            ClientCertificate("machines", {"certificates": CERTIFICATES, "others": None, "optional": True}, guard),
            Authorize("rules", {"rules": RULES}, guard),
        ]
        self.pipeline = Pipeline("p", links, self.backends)

    async def deliver(self, backend: str, aet: str, address: str, patient: str | None = "X") -> Exception | None:
        view = {} if patient is None else {PATIENT: {"vr": "LO", "Value": [patient]}}
        request = RequestEnvelope(
            "dicom", "C-STORE", "", "/", EmptyBody(), normalized=view, caller=Caller(address, None, aet)
        )
        return (await self.pipeline.deliver(backend, [request]))[0]


@pytest.mark.parametrize(
    ("backend", "aet", "address", "patient", "passes"),
    [
        ("archive", "CT1", "10.1.2.3", "X", True),
        ("archive", "CT1", "::ffff:10.1.2.3", "X", True),
        ("archive", "CT1 ", "10.1.2.3", "X", True),
        ("archive", "CT1", "10.2.2.3", "X", False),
        ("archive", "CT1", "", "X", False),
        ("archive", "CT2", "10.1.2.3", "X", False),
        ("archive", "", "10.1.2.3", "X", False),
        ("other", "CT1", "10.1.2.3", "X", False),
        ("other", "WARD", "", "W1", True),
        ("other", "WARD", "", "X", False),
        ("other", "WARD", "", None, False),
    ],
)
@pytest_twisted.ensureDeferred
async def test_inbound_objects(backend: str, aet: str, address: str, patient: str | None, passes: bool) -> None:
    """Who sends it, from where, to which backend, and about whom, have to fit; what does not is in the audit trail."""
    site = Site()
    outcome = await site.deliver(backend, aet, address, patient)
    assert (outcome is None) == passes
    assert passes or isinstance(outcome, MiddlewareRefused)
    assert len(site.backends[backend].seen) == passes
    assert bool(site.events) is not passes


def asked(certificate: PeerCertificate | None = None, **headers: str) -> RequestEnvelope:
    return RequestEnvelope(
        "http", "GET", "/", "/", EmptyBody(), headers=headers, caller=Caller("192.0.2.1", certificate),
        query={"backend": ["web"]},
    )  # fmt: skip


def certificate(*names: str, sha256: str = "cd" * 32) -> PeerCertificate:
    return PeerCertificate("CN=x", names, sha256)


@pytest_twisted.ensureDeferred
async def test_certificates_of_clients() -> None:
    """One is known by a name in it or its fingerprint; another one is wrong, and none is none."""
    site = Site()
    for known in (certificate("other", "ws7.example.org"), certificate(sha256="AB" * 32)):
        await site.pipeline.handle(asked(known))
    with pytest.raises(Unauthorized, match="wrong"):
        await site.pipeline.handle(asked(certificate("ws8.example.org")))
    with pytest.raises(Unauthorized) as caught:
        await site.pipeline.handle(asked())
    assert caught.value.extra["www_authenticate"] == 'Certificate realm="harmonyd"'
    assert len(site.backends["web"].seen) == 2


@pytest_twisted.ensureDeferred
async def test_what_held_credentials_stays_here() -> None:
    """Fields that were read are dropped at the backend's door; others pass, and links behind still see all."""
    site = Site()
    request = asked(certificate("ws7.example.org"), cookie="c", authorization="secret")
    request.consumed = frozenset({"authorization"})
    await site.pipeline.handle(request)
    assert site.backends["web"].seen == [{"cookie": "c"}]


@pytest_twisted.ensureDeferred
async def test_a_backend_that_cannot_be_held_to_a_limit_is_refused() -> None:
    """Who may see some patients only gets nothing from where nobody knows whose data it is."""
    site = Site()
    only = (Element(PATIENT, "PatientID", ("W*",)),)
    rules = [Rule(frozenset({"client"}), frozenset({"forward", "store"}), only=only)]
    guard = Guard(Clock(), in_thread, site.events.append)
    links: Sequence[Any] = [*site.pipeline.middleware[:2], Authorize("rules", {"rules": rules}, guard)]
    for backend in site.backends:
        with pytest.raises(Forbidden, match="limited"):
            request = asked(certificate("ws7.example.org"))
            request.query = {"backend": [backend]}
            await Pipeline("p", links, site.backends).handle(request)
    assert not any(target.seen for target in site.backends.values())


@pytest_twisted.ensureDeferred
async def test_refusals_are_audited_at_a_bounded_rate() -> None:
    """One event for each address and reason in a while, with who it was; the next one says how many there were."""
    site, clock = Site(), Clock()
    guard = Guard(clock, in_thread, site.events.append)
    links = [site.pipeline.middleware[1], Authorize("rules", {"rules": RULES[:1]}, guard)]
    pipeline = Pipeline("p", links, site.backends)
    for _ in range(100):
        with pytest.raises(Forbidden):
            await pipeline.handle(asked(certificate("ws7.example.org")))
    clock.advance(60)
    with pytest.raises(Forbidden):
        await pipeline.handle(asked(certificate("ws7.example.org")))
    assert [event.text for event in site.events] == [
        "authorize: forward at web is not allowed (ws7.example.org)",
        "authorize: forward at web is not allowed (ws7.example.org), and 99 more before",
    ]
    assert all(event.subject is not None and event.caller.address == "192.0.2.1" for event in site.events)
    assert guard.alarms.refused == {("authorize", "forbidden"): 101}
