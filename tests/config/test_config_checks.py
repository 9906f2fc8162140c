"""Rules for single values."""

from __future__ import annotations

import pytest

from harmonyd.config import checks


@pytest.mark.parametrize("value", ["A", "HARMONY_SCU", "with space", "-x", "sixteen-chars-ok"])
def test_ae_titles_that_are_right(value):
    """One to sixteen printable ASCII characters are an AE title."""
    assert checks.ae_title(value) is None


@pytest.mark.parametrize("value", ["", " ", "seventeen-chars-x", "A\\B", "A\nB", "Ä", "A\x7f", "@file"])
def test_ae_titles_that_are_wrong(value):
    """Empty, long, blank, non-ASCII, with backslash or control characters, or read as a file by DCMTK."""
    assert checks.ae_title(value)


@pytest.mark.parametrize(
    "value", ["localhost", "pacs.example.org", "pacs.example.org.", "pacs_1", "10.0.0.1", "::1", "fe80::1", "1host"]
)
def test_hosts_that_are_right(value):
    """Host names and both kinds of address are hosts."""
    assert checks.host(value) is None


@pytest.mark.parametrize(
    "value",
    [
        *("", "-pacs", "@pacs", "pacs-", "a..b", "a b", "a/b", "300.1.1.1", "1.2.3", "[::1]", "fe80::1%eth0", "a:104"),
        *("x" * 64, "a." * 127 + "com", "pacs\n", "$(id)", "ü.example"),
    ],
)
def test_hosts_that_are_wrong(value):
    """Nothing that could be an option, a file, a port, a shell word or a mistyped address is a host."""
    assert checks.host(value)


@pytest.mark.parametrize("value", ["/", "/dicom", "/dicom/", "/a/b-c/d.e", "/ä"])
def test_path_prefixes_that_are_right(value):
    """A prefix is made of whole, decoded segments."""
    assert checks.path_prefix(value) is None


@pytest.mark.parametrize(
    "value", ["", "dicom", "//a", "/a//b", "/a/../b", "/.", "/a?b", "/a#b", "/a%20b", "/a b", "/\n"]
)
def test_path_prefixes_that_are_wrong(value):
    """Empty or dot segments, queries, fragments and escapes are no prefix."""
    assert checks.path_prefix(value)


@pytest.mark.parametrize("value", ["/ImagingStudy", "/Patient/{id}", "/{a}/{b}", "/"])
def test_rules_that_are_right(value):
    """A rule has literal segments and variables that are whole segments."""
    assert checks.path_rule(value) is None


@pytest.mark.parametrize("value", ["Patient", "/Patient/{id", "/x{id}", "/{}", "/{1}", "/a//b"])
def test_rules_that_are_wrong(value):
    """A variable in part of a segment, or without a name, is no rule."""
    assert checks.path_rule(value)


@pytest.mark.parametrize("value", ["http://127.0.0.1:8888", "https://h/base/", "http://[::1]:80/x"])
def test_base_urls_that_are_right(value):
    """Absolute http URLs, with or without port and path."""
    assert checks.base_url(value) is None


@pytest.mark.parametrize(
    "value",
    [
        *("", "h:80", "/x", "ftp://h", "http://", "http://h:99999", "http://h:0", "http://u:p@h", "http://h/?a=1"),
        *("http://h/#f", "http://h/ x", "http://h/\n", "http://-h", "http://[::1", "http://h?"),
    ],
)
def test_base_urls_that_are_wrong(value):
    """Anything that is not an absolute URL to append paths to."""
    assert checks.base_url(value)


@pytest.mark.parametrize("value", ["127.0.0.1", "::", "systemd:http"])
def test_listen_addresses_that_are_right(value):
    """Both kinds of address and the name of a passed socket can be listened on."""
    assert checks.listen_address(value) is None


@pytest.mark.parametrize("value", ["", "localhost", "[::]", "systemd:", "systemd:a b", "127.0.0.1:80"])
def test_listen_addresses_that_are_wrong(value):
    """Host names, brackets, ports and socket names that systemd could not have are none."""
    assert checks.listen_address(value)


@pytest.mark.parametrize("value", ["a", "dicom_scp", "a.b-c", "1"])
def test_names_that_are_right(value):
    """Letters, digits and some separators are a name."""
    assert checks.name(value) is None


@pytest.mark.parametrize("value", ["", "..", ".a", "-a", "a/b", "a b", "a\n", "ä", "x" * 65, "a:b"])
def test_names_that_are_wrong(value):
    """What could leave a folder or break a child's name is no name."""
    assert checks.name(value)
