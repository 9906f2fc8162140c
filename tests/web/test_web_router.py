"""Prefixes, percent-encoding and what is refused in a request target."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmonyd.errors import BadRequest
from harmonyd.web.router import Match, Router, parse_query, segments_of, split_target


def find(router: Router[str], path: bytes) -> Match[str] | None:
    return router.match(segments_of(path))


@pytest.fixture
def router() -> Router[str]:
    made: Router[str] = Router()
    made.add_prefix("/dimse", "dimse")
    made.add_prefix("/dimse/special/", "special")
    made.add_prefix("/a b", "space")
    made.add_exact("/livez", "live")
    return made


@pytest.mark.parametrize(
    ("path", "target", "rest"),
    [
        (b"/dimse", "dimse", "/"),
        (b"/dimse/", "dimse", "/"),
        (b"/dimse/find", "dimse", "/find"),
        (b"/dimse/find/", "dimse", "/find/"),
        (b"/dimse/special", "special", "/"),
        (b"/dimse/special/x/y", "special", "/x/y"),
        (b"/dimse/specials", "dimse", "/specials"),
        (b"/%64imse/find", "dimse", "/find"),
        (b"/a%20b/c", "space", "/c"),
        (b"/dimse/J%C3%BCrgen", "dimse", "/Jürgen"),
        (b"/dimse//x", "dimse", "//x"),
        (b"/livez", "live", "/"),
        (b"/livez/", "live", "/"),
    ],
)
def test_the_longest_prefix_by_segments_wins(router: Router[str], path: bytes, target: str, rest: str) -> None:
    """A prefix matches whole segments only, and the rest is decoded."""
    found = find(router, path)
    assert found is not None
    assert (found.target, found.path) == (target, rest)


@pytest.mark.parametrize("path", [b"/", b"/dims", b"/dimsex", b"/livez/x", b"/dimse%2Ffind", b"//dimse"])
def test_no_route(router: Router[str], path: bytes) -> None:
    """What no prefix covers has no route; an encoded slash is no separator."""
    assert find(router, path) is None


def test_an_exact_path_wins_over_the_root() -> None:
    """An endpoint at "/" gets everything but the built-in paths themselves."""
    router: Router[str] = Router()
    router.add_prefix("/", "root")
    router.add_exact("/readyz", "ready")
    assert find(router, b"/readyz") == Match("ready", "/readyz", "/")
    assert find(router, b"/readyz/more") == Match("root", "", "/readyz/more")
    assert find(router, b"/") == Match("root", "", "/")


def test_equal_prefixes_are_refused() -> None:
    """Two routes whose prefixes differ only in a trailing slash are an error."""
    router: Router[str] = Router()
    router.add_prefix("/x", "one")
    with pytest.raises(ValueError, match="/x/"):
        router.add_prefix("/x/", "two")


def test_an_encoded_slash_stays_in_its_segment(router: Router[str]) -> None:
    """%2F reaches the endpoint as %2F, so that nobody takes it for a separator."""
    found = find(router, b"/dimse/a%2fb/c")
    assert found is not None
    assert found.path == "/a%2Fb/c"


@pytest.mark.parametrize(
    "path",
    [
        b"/dimse/../etc",
        b"/dimse/%2e%2e/etc",
        b"/dimse/.%2E",
        b"/dimse/./x",
        b"/dimse/..%2fetc",
        b"/dimse/x%2f..",
        b"/dimse/%00",
        b"/dimse/%ff",
        b"/dimse/%c0%af",
        b"/dimse/%zz",
        b"/dimse/%",
    ],
)
def test_path_tricks_are_refused(path: bytes) -> None:
    """Dot segments, NUL, bytes that are not UTF-8 and broken escapes are the caller's fault."""
    with pytest.raises(BadRequest):
        segments_of(path)


def test_segments_are_decoded_once() -> None:
    """What was encoded twice is still encoded once."""
    assert segments_of(b"/%252e%252e/x") == ("%2e%2e", "x")


@given(st.binary(max_size=60))
def test_any_path_is_decoded_or_refused(raw: bytes) -> None:
    """No byte string makes the decoder fail in another way, or lets a dot segment through."""
    try:
        segments = segments_of(b"/" + raw)
    except BadRequest:
        return
    assert not {".", ".."} & set(segments)
    assert all("/" not in segment and "\0" not in segment for segment in segments)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"/a?b=c", (b"/a", b"b=c")),
        (b"/a", (b"/a", b"")),
        (b"http://host:8080/a?b", (b"/a", b"b")),
        (b"HTTP://host", (b"/", b"")),
        (b"http://host?x=1", (b"/", b"x=1")),
    ],
)
def test_forms_of_a_request_target(target: bytes, expected: tuple[bytes, bytes]) -> None:
    """Servers accept a whole URL as well as a path (RFC 9112 section 3.2.2)."""
    assert split_target(target) == expected


@pytest.mark.parametrize("target", [b"*", b"host:80", b"ftp://host/x", b"x"])
def test_other_targets_are_refused(target: bytes) -> None:
    """What is neither a path nor a URL has no route here."""
    with pytest.raises(BadRequest):
        split_target(target)


def test_query_parameters() -> None:
    """Repeated and blank fields are kept, in raw and in encoded UTF-8."""
    assert parse_query(b"a=1&a=2&b=&n=J%C3%BCrgen+M&m=\xc3\xbc") == {
        "a": ["1", "2"],
        "b": [""],
        "n": ["Jürgen M"],
        "m": ["ü"],
    }


@pytest.mark.parametrize("query", [b"a=%ff", b"&".join([b"a=1"] * 1001)])
def test_bad_queries_are_refused(query: bytes) -> None:
    """Bytes that are not UTF-8, and more fields than anybody needs, are the caller's fault."""
    with pytest.raises(BadRequest):
        parse_query(query)
