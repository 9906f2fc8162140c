"""``jwt_auth``: which tokens are taken, and what a forged one gets."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
import pytest_twisted
from auth_kit import EC, ED, RSA, Watched, pem_of, request
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key

from harmonyd.errors import TooManyRequests, Unauthorized, Unavailable
from harmonyd.jwk import key_of_pem, parse_key_set
from harmonyd.middleware.auth.jwt_auth import JwtAuth
from harmonyd.middleware.auth.key_sets import AGAIN_SECS, STALE_SECS, ChangingKeys
from harmonyd.middleware.auth.verified import MOST, VerifiedTokens
from harmonyd.subject import Subject

OPTIONS: dict[str, Any] = {
    "algorithms": ("RS256", "ES256", "EdDSA"),
    "issuer": "https://id.example",
    "audience": ("harmonyd",),
    "leeway_secs": 10.0,
    "subject_claim": "sub",
    "roles_claim": ("roles",),
    "hs256_secret": "",
    "public_key": pem_of(RSA),
    "jwks_path": None,
    "jwks_url": "",
    "jwks_ca": b"",
    "jwks_refresh_secs": 600.0,
    "optional": False,
}


def claims(**changes: Any) -> dict[str, Any]:
    """Those of a good token; None takes one away."""
    now = int(time.time())
    good = {"sub": "ann", "iss": "https://id.example", "aud": "harmonyd", "exp": now + 60, "roles": ["reader"]}
    return {name: value for name, value in {**good, **changes}.items() if value is not None}


def signed(key: Any = RSA, algorithm: str = "RS256", headers: dict[str, Any] | None = None, **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, algorithm, headers)


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def forged(header: dict[str, Any], signature: bytes = b"") -> str:
    """A token as anybody can write it."""
    parts = [json.dumps(header).encode(), json.dumps(claims()).encode(), signature]
    return ".".join(base64.urlsafe_b64encode(part).decode().rstrip("=") for part in parts)


def confused() -> str:
    """One that takes the public key for the secret of an HMAC."""
    head = forged({"alg": "HS256", "typ": "JWT"}).rpartition(".")[0]
    digest = hmac.digest(pem_of(RSA), head.encode(), hashlib.sha256)
    return f"{head}.{base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


async def reason(token: str, **options: Any) -> str:
    """Why it is refused, as the audit trail has it."""
    watched = Watched()
    with pytest.raises(Unauthorized) as caught:
        await JwtAuth("who", {**OPTIONS, **options}, watched.guard).on_request(request(bearer(token)))
    assert 'error="invalid_token"' in caught.value.extra["www_authenticate"]
    assert token not in repr(watched.events)
    return watched.events[0].details["reason"]


@pytest.mark.parametrize(("key", "algorithm"), [(RSA, "RS256"), (EC, "ES256"), (ED, "EdDSA")])
@pytest_twisted.ensureDeferred
async def test_a_good_token(key: Any, algorithm: str) -> None:
    """Subject and roles are those of its claims, and it goes no further."""
    link = JwtAuth("who", {**OPTIONS, "public_key": pem_of(key)}, Watched().guard)
    asked = request(bearer(signed(key, algorithm, aud=["other", "harmonyd"])))
    assert await link.on_request(asked) is None
    assert asked.subject is not None
    assert (asked.subject.name, asked.subject.roles, asked.subject.scheme) == ("ann", {"reader"}, "jwt_auth")
    assert asked.consumed == {"authorization"}


@pytest.mark.parametrize(
    ("token", "expected"),
    [
        (lambda: forged({"alg": "none"}), "algorithm"),
        (lambda: forged({"alg": "None"}), "algorithm"),
        (lambda: forged({"alg": ["RS256"]}), "algorithm"),
        (lambda: forged({}), "algorithm"),
        (lambda: forged({"alg": "RS256"}), "signature"),
        (confused, "algorithm"),
        (lambda: signed(generate_private_key(65537, 2048)), "signature"),
        (lambda: signed(EC, "ES256"), "signature"),
        (lambda: signed(aud="other"), "audience"),
        (lambda: signed(aud=None), "no-aud"),
        (lambda: signed(aud=7), "audience"),
        (lambda: signed(iss="https://evil.example"), "issuer"),
        (lambda: signed(iss=None), "no-iss"),
        (lambda: signed(exp=int(time.time()) - 11), "expired"),
        (lambda: signed(exp=None), "no-exp"),
        (lambda: signed(exp="soon"), "malformed"),
        (lambda: signed(nbf=int(time.time()) + 60), "not-yet-valid"),
        (lambda: signed(sub=None), "no-subject"),
        (lambda: signed(sub="a\nb"), "no-subject"),
        (lambda: forged({"alg": "RS256", "kid": {"a": 1}}), "malformed"),
        (lambda: signed(headers={"kid": "x" * 300}), "malformed"),
        (lambda: signed(filler="x" * 12_000), "malformed"),
        (lambda: "a.b.c", "malformed"),
        (lambda: "eyJhbGciOiJSUzI1NiJ9", "malformed"),
        (lambda: signed()[:-4] + "AAAA", "signature"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_refused(token: Any, expected: str) -> None:
    """Nothing that the configured issuer did not sign for us, now, with the configured algorithm."""
    assert await reason(token()) == expected


@pytest_twisted.ensureDeferred
async def test_what_a_token_calls_critical_has_to_be_understood() -> None:
    """No extension is (RFC 7515 section 4.1.11)."""
    token = signed(headers={"crit": ["exp"], "exp": 1})
    assert await reason(token) in ("critical-extension", "malformed")


@pytest_twisted.ensureDeferred
async def test_a_name_of_a_key_leads_nowhere_else() -> None:
    """A ``kid`` that looks like a path, a query or a URL, and keys in the token, change nothing."""
    link = JwtAuth("who", OPTIONS, Watched().guard)
    for kid in ("../../dev/null", "' OR 1=1 --", "https://evil.example/jwks.json"):
        asked = request(bearer(signed(headers={"kid": kid, "jku": "https://evil.example", "jwk": {"kty": "oct"}})))
        assert await link.on_request(asked) is None
    other = generate_private_key(65537, 2048)
    public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(other.public_key()))
    assert await reason(signed(other, headers={"jwk": public, "x5c": ["MII"]})) == "signature"


@pytest.mark.parametrize(
    ("given", "path", "expected"),
    [
        ({"roles": "a b  c"}, ("roles",), {"a", "b", "c"}),
        ({"realm_access": {"roles": ["a", 1, ""]}}, ("realm_access", "roles"), {"a"}),
        ({"roles": {"a": 1}}, ("roles",), set()),
        ({"roles": 5}, ("roles", "x"), set()),
    ],
)
@pytest_twisted.ensureDeferred
async def test_roles(given: dict[str, Any], path: tuple[str, ...], expected: set[str]) -> None:
    """A list, or words, perhaps further in; anything else is no role."""
    link = JwtAuth("who", {**OPTIONS, "roles_claim": path}, Watched().guard)
    asked = request(bearer(signed(**given)))
    await link.on_request(asked)
    assert asked.subject is not None
    assert asked.subject.roles == expected


@pytest_twisted.ensureDeferred
async def test_a_shared_secret_where_it_is_asked_for() -> None:
    """HS256 is taken with ``use_hs256`` only, and nothing else is then."""
    options = {**OPTIONS, "algorithms": ("HS256",), "hs256_secret": "s" * 40, "public_key": b""}
    asked = request(bearer(signed("s" * 40, "HS256")))
    assert await JwtAuth("who", options, Watched().guard).on_request(asked) is None
    assert await reason(signed(), **options) == "algorithm"


@pytest_twisted.ensureDeferred
async def test_who_guesses_has_to_wait_and_who_is_right_does_not() -> None:
    """After some forged tokens the answer is 429; a good token from there is taken, and an expired one is no guess."""
    link = JwtAuth("who", OPTIONS, Watched().guard)
    refusals = []
    for _ in range(25):
        with pytest.raises((Unauthorized, TooManyRequests)) as caught:
            await link.on_request(request(bearer(forged({"alg": "none"}))))
        refusals.append(caught.type)
    assert refusals[0] is Unauthorized
    assert refusals[-1] is TooManyRequests
    assert await link.on_request(request(bearer(signed()))) is None
    with pytest.raises(Unauthorized):
        await link.on_request(request(bearer(signed(exp=1))))


# --- tokens that come again


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokens that were verified, in their order."""
    seen: list[str] = []
    decode = jwt.decode

    def watched(token: str, *args: Any, **options: Any) -> Any:
        seen.append(token)
        return decode(token, *args, **options)

    monkeypatch.setattr(jwt, "decode", watched)
    return seen


@pytest_twisted.ensureDeferred
async def test_a_token_that_comes_again_is_not_verified_again(decoded: list[str]) -> None:
    """The same subject without cryptography; another token of the same subject, and a changed one, are looked at."""
    link = JwtAuth("who", OPTIONS, Watched().guard)
    token = signed()
    asked = [request(bearer(token)) for _ in range(3)]
    for each in asked:
        assert await link.on_request(each) is None
    assert [each.subject for each in asked] == [asked[0].subject] * 3
    assert decoded == [token]
    other = signed(jti="2")
    assert await link.on_request(request(bearer(other))) is None
    with pytest.raises(Unauthorized):
        await link.on_request(request(bearer(token[:-8] + "AAAAAAAA")))
    assert decoded == [token, other, token[:-8] + "AAAAAAAA"]


@pytest_twisted.ensureDeferred
async def test_a_key_that_is_withdrawn_takes_its_tokens_along(tmp_path: Path) -> None:
    """A token that was right is refused as soon as the key set has its key no more."""
    file = tmp_path / "keys.json"
    file.write_bytes(key_set(entry(RSA, "one")))
    watched = Watched()
    link = JwtAuth("who", {**OPTIONS, "public_key": b"", "jwks_path": file}, watched.guard)
    token = bearer(signed(headers={"kid": "one"}))
    assert await link.on_request(request(token)) is None
    assert await link.on_request(request(token)) is None
    file.write_bytes(key_set(entry(EC, "two")))
    watched.clock.advance(OPTIONS["jwks_refresh_secs"])
    await link.on_request(request(token))  # makes it read again, and does not wait for that
    with pytest.raises(Unauthorized):
        await link.on_request(request(token))


def test_what_was_verified_is_kept_for_its_time() -> None:
    """From nbf to exp, each with the leeway, whichever way the clock jumps; and no more than there is room for."""
    clock = [1000.0]
    tokens = VerifiedTokens(10.0, lambda: clock[0])
    key, subject = key_of_pem(pem_of(RSA)), Subject("ann", frozenset(), "jwt_auth")

    def kept(at: float) -> bool:
        clock[0] = 1000.0
        tokens.put("token", subject, {"exp": 1060, "nbf": 900, "iat": 950}, key, "one", "RS256")
        clock[0] = at
        found = tokens.get("token")
        assert found is None or (found.subject, found.key) == (subject, key)
        return found is not None

    assert [kept(at) for at in (939.9, 940.0, 1069.9, 1070.0)] == [False, True, True, False]
    clock[0] = 1000.0
    assert tokens.get("token") is None, "what was too old once is forgotten"
    for number in range(MOST + 1):
        tokens.put(f"token {number}", subject, {"exp": 1060}, key, "one", "RS256")
    assert tokens.get("token 0") is None
    assert tokens.get("token 1") is not None


# --- key sets


def entry(key: Any, kid: str, **more: Any) -> dict[str, Any]:
    kinds = {RSA: jwt.algorithms.RSAAlgorithm, EC: jwt.algorithms.ECAlgorithm, ED: jwt.algorithms.OKPAlgorithm}
    kind = kinds.get(key, jwt.algorithms.RSAAlgorithm)
    return {**json.loads(kind.to_jwk(key.public_key())), "kid": kid, **more}


def key_set(*entries: Any) -> bytes:
    return json.dumps({"keys": list(entries)}).encode()


class Server:
    """Has a key set, or fails; counts how often it was asked."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.failure: Exception | None = None
        self.count = 0

    async def read(self) -> bytes:
        self.count += 1
        if self.failure is not None:
            raise self.failure
        return self.content


async def names(keys: ChangingKeys, kid: str | None, algorithm: str = "RS256") -> list[str]:
    return [key.kid for key in await keys.candidates(kid, algorithm)]


@pytest_twisted.ensureDeferred
async def test_a_new_key_is_fetched_at_a_bounded_rate() -> None:
    """A name that is not known makes the set be read again, not more often than once in a while."""
    server, watched = Server(key_set(entry(RSA, "one"))), Watched()
    keys = ChangingKeys("x", server.read, watched.clock.seconds, 600.0)
    assert await names(keys, "one") == ["one"]
    server.content = key_set(entry(RSA, "two"), entry(EC, "e"))
    for _ in range(1000):
        assert await names(keys, "made-up") == []
    assert server.count == 1
    watched.clock.advance(AGAIN_SECS)
    assert await names(keys, "two") == ["two"]
    assert await names(keys, "one") == []
    assert await names(keys, "e", "ES256") == ["e"]
    assert await names(keys, "e", "RS256") == []
    assert server.count == 2


@pytest_twisted.ensureDeferred
async def test_without_a_name_there_is_one_key_or_none() -> None:
    """A token that does not say which key it means is taken where only one can be meant."""
    keys = ChangingKeys("x", Server(key_set(entry(RSA, "a"), entry(EC, "b"))).read, Watched().clock.seconds, 600.0)
    assert await names(keys, None) == ["a"]
    more = Server(key_set(entry(RSA, "a"), entry(generate_private_key(65537, 2048), "c")))
    assert await names(ChangingKeys("x", more.read, Watched().clock.seconds, 600.0), None) == []


@pytest_twisted.ensureDeferred
async def test_a_server_that_is_away_is_no_reason_to_refuse() -> None:
    """Keys that are there go on being used for a day; without any it is 503."""
    server, watched = Server(key_set(entry(RSA, "one"))), Watched()
    keys = ChangingKeys("x", server.read, watched.clock.seconds, 600.0)
    await names(keys, "one")
    server.failure = ValueError("away")
    watched.clock.advance(3600.0)
    assert await names(keys, "one") == ["one"]
    assert server.count == 2
    watched.clock.advance(STALE_SECS)
    with pytest.raises(Unavailable):
        await names(keys, "one")
    server.failure = None
    watched.clock.advance(AGAIN_SECS)
    assert await names(keys, "one") == ["one"]


@pytest_twisted.ensureDeferred
async def test_a_key_set_in_a_file(tmp_path: Path) -> None:
    """It is read when it is needed, and again when it has changed."""
    path, watched = tmp_path / "jwks.json", Watched()
    path.write_bytes(key_set(entry(RSA, "one", alg="RS256", use="sig")))
    link = JwtAuth("who", {**OPTIONS, "public_key": b"", "jwks_path": path}, watched.guard)
    assert await link.on_request(request(bearer(signed(headers={"kid": "one"})))) is None
    path.write_bytes(key_set(entry(EC, "two")))
    watched.clock.advance(AGAIN_SECS)
    assert await link.on_request(request(bearer(signed(EC, "ES256", headers={"kid": "two"})))) is None


@pytest.mark.parametrize(
    "data",
    [
        *(b"", b"[]", b"{}", b'{"keys": {}}', b'{"keys": []}', b"[" * 100_000, key_set(1, {"kty": "oct", "k": "AA"})),
        *(key_set(entry(RSA, "a", use="enc")), key_set({"kty": "RSA", "n": "AQAB", "e": "AQAB"}), b" " * 300_000),
        key_set(*[entry(RSA, "a")] * 101),
    ],
)
def test_what_is_no_key_set(data: bytes) -> None:
    """Shared secrets, keys for something else, short keys and anything that is too big are none."""
    with pytest.raises(ValueError, match="it "):
        parse_key_set(data)


def test_short_keys_are_refused() -> None:
    """An RSA key has 2048 bits at least."""
    with pytest.raises(ValueError, match="1024"):
        key_of_pem(pem_of(generate_private_key(65537, 1024)))
    with pytest.raises(ValueError, match="PEM"):
        key_of_pem(b"nothing")
