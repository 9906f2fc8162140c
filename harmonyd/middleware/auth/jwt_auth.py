"""``jwt_auth``: bearer tokens (RFC 6750) that are JSON Web Tokens (RFC 7519), as in RFC 8725."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from harmonyd.envelope import RequestEnvelope
from harmonyd.errors import Unauthorized
from harmonyd.jwk import MOST_BYTES, Key, key_of_pem
from harmonyd.middleware.auth.fetching import fetch
from harmonyd.middleware.auth.guard import Guard
from harmonyd.middleware.auth.key_sets import ChangingKeys, FixedKeys, Keys
from harmonyd.middleware.auth.scheme import Scheme
from harmonyd.middleware.auth.verified import VerifiedTokens
from harmonyd.subject import Subject

MOST_TOKEN = 12 * 1024
MOST_KID = 200
MOST_ROLES = 200
_MOST_NAME = 256
_MOST_NESTING = 8
_EXPIRED = "expired"


class JwtAuth(Scheme):
    """The issuer's keys and the claims decide. Algorithms are the configuration's, never the token's choice."""

    type = "jwt_auth"
    field = "authorization"
    challenge = 'Bearer realm="harmonyd"'

    def __init__(self, name: str, options: Mapping[str, Any], guard: Guard) -> None:
        super().__init__(name, options, guard)
        self._algorithms: tuple[str, ...] = options["algorithms"]
        self._issuer: str | None = options["issuer"]
        self._audience: tuple[str, ...] = options["audience"]
        self._leeway_secs: float = options["leeway_secs"]
        self._subject_claim: str = options["subject_claim"]
        self._roles_claim: tuple[str, ...] = options["roles_claim"]
        self._keys = _keys(options, guard)
        self._verified_tokens = VerifiedTokens(self._leeway_secs)

    def shown(self, request: RequestEnvelope) -> str | None:
        scheme, _, rest = request.headers.get(self.field, "").strip().partition(" ")
        return rest.strip() if scheme.lower() == "bearer" else None

    async def checked(self, request: RequestEnvelope, shown: str) -> Subject:
        if len(shown) > MOST_TOKEN or not shown.isascii():
            self._refuse(request, "malformed")
        known = self._verified_tokens.get(shown)
        if known is not None:
            trusted = await self._keys.candidates(known.kid, known.algorithm)
            if any(key is known.key for key in trusted):
                return known.subject
        claims, key, kid, algorithm = await self._claims(request, shown)
        name = claims.get(self._subject_claim)
        if not isinstance(name, str) or not 1 <= len(name) <= _MOST_NAME or not name.isprintable():
            self._refuse(request, "no-subject")
        subject = Subject(name, _roles(claims, self._roles_claim), self.type)
        self._verified_tokens.put(shown, subject, claims, key, kid, algorithm)
        return subject

    async def _claims(self, request: RequestEnvelope, token: str) -> tuple[dict[str, Any], Key, str | None, str]:
        """The claims, and what vouches for them."""
        import jwt

        try:
            header = jwt.get_unverified_header(token)
        except (jwt.InvalidTokenError, ValueError, RecursionError):
            self._refuse(request, "malformed")
        algorithm, kid = header.get("alg"), header.get("kid")
        if algorithm not in self._algorithms:
            self._refuse(request, "algorithm")
        if "crit" in header or header.get("b64") is False:
            self._refuse(request, "critical-extension")
        if kid is not None and not (isinstance(kid, str) and len(kid) <= MOST_KID):
            self._refuse(request, "malformed")
        for key in await self._keys.candidates(kid, algorithm):
            claims = self._verified(request, token, key, algorithm)
            if claims is not None:
                return claims, key, kid, algorithm
        return self._refuse(request, "signature")

    def _verified(self, request: RequestEnvelope, token: str, key: Key, algorithm: str) -> dict[str, Any] | None:
        """The claims; None for another key's signature."""
        import jwt

        required = ["exp", *(["iss"] if self._issuer else []), *(["aud"] if self._audience else [])]
        try:
            claims: dict[str, Any] = jwt.decode(
                token,
                key.material,
                algorithms=[algorithm],
                issuer=self._issuer,
                audience=list(self._audience) or None,
                leeway=self._leeway_secs,
                options={"require": required, "verify_aud": bool(self._audience), "verify_iss": bool(self._issuer)},
            )
        except (jwt.InvalidSignatureError, jwt.InvalidKeyError):
            return None
        except jwt.ExpiredSignatureError:
            self._refuse(request, _EXPIRED)
        except jwt.ImmatureSignatureError:
            self._refuse(request, "not-yet-valid")
        except jwt.InvalidAudienceError:
            self._refuse(request, "audience")
        except jwt.InvalidIssuerError:
            self._refuse(request, "issuer")
        except jwt.MissingRequiredClaimError as error:
            self._refuse(request, f"no-{error.claim}")
        except (jwt.InvalidTokenError, ValueError, TypeError, OverflowError, RecursionError):
            self._refuse(request, "malformed")
        return claims

    def _refuse(self, request: RequestEnvelope, reason: str) -> NoReturn:
        challenge = f'{self.challenge}, error="invalid_token"'
        if reason == _EXPIRED:
            # It was a right one: nobody guesses.
            self.guard.alarms.tell(request, self.type, reason)
            raise Unauthorized("The token has expired.", hint="Get a new one.", www_authenticate=challenge)
        self.guard.admit(request, self.type)
        self.wrong(request, reason, challenge=challenge)


def _roles(claims: Mapping[str, Any], path: tuple[str, ...]) -> frozenset[str]:
    """A list of names, or names with spaces between (as in ``scope``, RFC 8693 section 4.2)."""
    found: Any = claims
    for name in path[:_MOST_NESTING]:
        found = found.get(name) if isinstance(found, Mapping) else None
    names = found.split() if isinstance(found, str) else found if isinstance(found, list) else []
    return frozenset(name for name in names[:MOST_ROLES] if isinstance(name, str) and 1 <= len(name) <= _MOST_NAME)


def _keys(options: Mapping[str, Any], guard: Guard) -> Keys:
    refresh_secs: float = options["jwks_refresh_secs"]
    if options["hs256_secret"]:
        return FixedKeys(Key(frozenset({"HS256"}), options["hs256_secret"].encode()))
    if options["public_key"]:
        return FixedKeys(key_of_pem(options["public_key"]))
    path: Path | None = options["jwks_path"]
    seconds = guard.reactor.seconds
    if path is not None:
        return ChangingKeys(str(path), lambda: guard.in_thread(_read, path), seconds, refresh_secs)
    url, ca = options["jwks_url"], options["jwks_ca"]
    return ChangingKeys(url, lambda: fetch(guard.reactor, url, ca, MOST_BYTES), seconds, refresh_secs)


def _read(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(MOST_BYTES + 1)
