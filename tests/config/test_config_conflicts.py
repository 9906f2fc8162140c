"""What two tables claim both, and what one takes from another."""

from __future__ import annotations

import pytest

from harmonyd.testing.certificates import Authority

PROXY = '[proxy]\nid = "x"\n'
HTTP = '[network.{0}.http]\nbind_address = "{1}"\nbind_port = {2}\n'
DEFAULT = HTTP.format("default", "127.0.0.1", 8080)


def scp(name, options=""):
    return f'[endpoints.{name}]\nservice = "dicom"\noptions = {{ {options} }}\n'


def web(name, prefix, service="http"):
    return f'[endpoints.{name}]\nservice = "{service}"\noptions = {{ path_prefix = "{prefix}" }}\n'


def pacs(name, options=""):
    text = f'[backends.{name}]\nservice = "dicom"\n[backends.{name}.options]\naet = "A"\nhost = "h"\nport = 104\n'
    return text + options + "\n"


def pipe(name, endpoints, backends=(), networks=("default",)):
    lists = f"networks = {list(networks)}\nendpoints = {list(endpoints)}\nbackends = {list(backends)}\n"
    return f"[pipelines.{name}]\n{lists}"


def places(found):
    return [(problem.table, problem.key) for problem in found]


def test_two_scps_on_one_port(problems):
    """Two started endpoints on one port name each other, across files."""
    found = problems(scp("a") + pipe("p", ["a"]), two=scp("b") + pipe("q", ["b"]))
    assert places(found) == [("endpoints.b.options", "port")]
    assert "[endpoints.a.options] port" in found[0].what
    assert "one.toml" in found[0].what


def test_an_scp_that_no_pipeline_names_takes_no_port(loaded):
    """What is not started does not collide."""
    assert loaded(scp("a") + scp("b") + pipe("p", ["a"]))


@pytest.mark.parametrize("options", ["", "store_scp = 'transient'"])
def test_an_scp_on_the_port_of_a_receiver(problems, options):
    """An endpoint and the receiver of a backend cannot share a port."""
    backend = pacs("b", "incoming_store_port = 11112\n" + options)
    text = scp("a") + web("w", "/w") + backend + pipe("p", ["a", "w"], ["b"])
    assert places(problems(text)) == [("backends.b.options", "incoming_store_port")]


def test_an_scp_on_the_default_port_of_a_receiver(problems):
    """The default receiver port counts as well: the first move would open it."""
    text = scp("a", "port = 11123") + web("w", "/w") + pacs("b") + pipe("p", ["a", "w"], ["b"])
    assert places(problems(text)) == [("backends.b.options", "incoming_store_port")]


def test_a_backend_that_no_http_endpoint_reaches_has_no_receiver(loaded):
    """A backend that only forwards never moves, so its port is free."""
    assert loaded(scp("a", "port = 11123") + pacs("b") + pipe("p", ["a"], ["b"]))


def test_backends_share_a_receiver_in_one_mode(loaded):
    """The same port and mode is one receiver."""
    assert loaded(web("w", "/w") + pacs("a") + pacs("b") + pipe("p", ["w"], ["a", "b"]))


def test_backends_with_different_modes_on_one_port(problems):
    """One port cannot be received on in two modes."""
    text = web("w", "/w") + pacs("a") + pacs("b", "persistent_store_scp = false") + pipe("p", ["w"], ["a", "b"])
    found = problems(text)
    assert places(found) == [("backends.b.options", "incoming_store_port")]
    assert "transient" in found[0].what
    assert "[backends.a.options]" in found[0].what


@pytest.mark.parametrize(
    ("one", "two", "clash"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "0.0.0.0", True),
        ("::", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.2", False),
    ],
)
def test_two_networks_on_one_port(loaded, problems, one, two, clash):
    """Listeners on one port collide when their addresses overlap."""
    main = PROXY + HTTP.format("a", one, 8080) + HTTP.format("b", two, 8080)
    if clash:
        assert places(problems(main=main)) == [("network.b.http", "bind_port")]
    else:
        assert loaded(main=main)


@pytest.mark.parametrize(("name", "clash"), [("one", True), ("two", False)])
def test_two_networks_on_one_passed_socket(loaded, problems, name, clash):
    """A socket that systemd passes belongs to one network."""
    text = '[network.{0}.http]\nbind_address = "systemd:{1}"\n'
    main = PROXY + text.format("a", "one") + text.format("b", name)
    if clash:
        assert places(problems(main=main)) == [("network.b.http", "bind_address")]
    else:
        assert loaded(main=main)


def test_an_scp_on_the_port_of_a_network(problems):
    """A dicom endpoint and an HTTP listener cannot share a port."""
    assert places(problems(scp("a", "port = 8080") + pipe("p", ["a"]))) == [("endpoints.a.options", "port")]


@pytest.mark.parametrize("prefix", ["/x", "/x/"])
def test_equal_prefixes_on_one_network(problems, prefix):
    """Two endpoints with one path, after trimming the slash, are both named."""
    found = problems(web("a", "/x") + pipe("p", ["a"]), two=web("b", prefix, "echo") + pipe("q", ["b"]))
    assert places(found) == [("endpoints.b.options", "path_prefix")]
    assert '"a"' in found[0].what
    assert '"b"' in found[0].what


def test_equal_prefixes_on_different_networks(loaded):
    """Each network has paths of its own."""
    main = PROXY + DEFAULT + HTTP.format("other", "127.0.0.1", 8081)
    assert loaded(web("a", "/x") + pipe("p", ["a"]) + web("b", "/x") + pipe("q", ["b"], networks=["other"]), main=main)


def test_prefixes_that_only_start_alike(loaded):
    """A longer prefix is another one."""
    assert loaded(web("a", "/x") + web("b", "/x/y") + web("c", "/") + pipe("p", ["a", "b", "c"]))


@pytest.mark.parametrize("prefix", ["/livez", "/readyz/", "/metrics", "/openapi.json", "/docs", "/docs/", "/admin"])
def test_built_in_paths(problems, prefix):
    """An endpoint on a built-in path could never be reached."""
    assert places(problems(web("a", prefix) + pipe("p", ["a"]))) == [("endpoints.a.options", "path_prefix")]


def test_the_management_base_follows_its_key(loaded, problems):
    """Only the configured base path is kept free."""
    main = PROXY + DEFAULT + '[management]\nbase_path = "/manage"\n'
    assert loaded(web("a", "/admin") + pipe("p", ["a"]), main=main)
    assert "management" in problems(web("a", "/manage") + pipe("p", ["a"]), main=main)[0].what


def test_the_management_base_is_no_built_in_path(problems):
    """One of the two could never be reached."""
    main = PROXY + DEFAULT + '[management]\nbase_path = "docs"\n'
    assert places(problems(web("a", "/x") + pipe("p", ["a"]), main=main)) == [("management", "base_path")]


def test_paths_below_built_in_ones(loaded):
    """A path below a built-in one is another path."""
    assert loaded(web("a", "/docs/dicom") + pipe("p", ["a"]))


def test_one_endpoint_in_two_pipelines_of_a_network(problems):
    """A request would not know which pipeline to take."""
    found = problems(web("a", "/x") + pipe("p", ["a"]) + pipe("q", ["a"]))
    assert places(found) == [("pipelines.q", "endpoints")]
    assert '"p"' in found[0].what


def test_one_endpoint_in_two_pipelines_of_two_networks(loaded):
    """With a network each, the way is clear."""
    main = PROXY + DEFAULT + HTTP.format("other", "127.0.0.1", 8081)
    assert loaded(web("a", "/x") + pipe("p", ["a"]) + pipe("q", ["a"], networks=["other"]), main=main)


def test_an_scp_in_two_pipelines(problems):
    """An SCP listens once, whatever the networks."""
    found = problems(scp("a") + pipe("p", ["a"]) + pipe("q", ["a"], networks=[]))
    assert places(found) == [("pipelines.q", "endpoints")]


NETWORKS = DEFAULT + '[network.d.dicom]\nbind_address = "0.0.0.0"\nbind_port = 104\naet = "NET"\n'


def test_defaults_from_the_network(loaded):
    """What an endpoint leaves open comes from its network; what it says stays."""
    config = loaded(scp("a", 'local_aet = "OWN"') + pipe("p", ["a"], networks=["d"]), main=PROXY + NETWORKS)
    options = config.endpoints["a"].options
    assert (options.local_aet, options.port) == ("OWN", 104)


def test_defaults_only_from_networks_of_its_pipelines(loaded):
    """Another network's defaults do not apply."""
    assert loaded(scp("a") + pipe("p", ["a"]), main=PROXY + NETWORKS).endpoints["a"].options.port == 11112


def test_defaults_that_differ(problems):
    """Two networks with different defaults leave no answer."""
    main = PROXY + NETWORKS + "[network.e.dicom]\nbind_port = 105\n"
    found = problems(scp("a") + pipe("p", ["a"], networks=["d", "e"]), main=main)
    assert places(found) == [("endpoints.a.options", "port")]


def test_defaults_count_as_ports(problems):
    """Two endpoints that take the same default collide."""
    found = problems(scp("a") + scp("b") + pipe("p", ["a", "b"], networks=["d"]), main=PROXY + NETWORKS)
    assert places(found) == [("endpoints.b.options", "port")]


def test_a_default_address_that_a_persistent_storescp_cannot_listen_on(loaded, problems):
    """An endpoint that takes another bind address from its network receives per association, or says that it cannot."""
    main = PROXY + DEFAULT + '[network.d.dicom]\nbind_address = "127.0.0.1"\n'
    options = loaded(scp("a") + pipe("p", ["a"], networks=["d"]), main=main).endpoints["a"].options
    assert (options.bind_addr, options.store_scp) == ("127.0.0.1", "per-association")
    found = problems(scp("a", "store_scp = 'persistent'") + pipe("p", ["a"], networks=["d"]), main=main)
    assert places(found) == [("endpoints.a.options", "bind_addr")]
    assert "per-association" in found[0].remedy


def test_endpoints_of_different_titles_share_a_port(loaded, problems):
    """Ports of our own are shared by AE titles; one title has one owner, and a persistent storescp shares nothing."""
    own = "store_scp = 'per-association', port = 104, local_aet = "
    pipes = pipe("p", ["a", "b"])
    assert loaded(scp("a", own + "'A'") + scp("b", own + "'B'") + pipes)
    found = problems(scp("a", own + "'A'") + scp("b", own + "'A'") + pipes)
    assert [problem.what for problem in found] == ["[endpoints.a.options] answers to A on port 104 already"]
    assert problems(scp("a", own + "'A'") + scp("b", "port = 104") + pipes)


def test_who_shares_a_port_shares_its_address_and_tls(loaded, problems, tmp_path):
    """A port has one socket and one certificate; the one that differs is told what to change."""
    own = "engine = 'native', port = 104, local_aet = "
    pipes = pipe("p", ["a", "b"])
    here = ", bind_addr = '127.0.0.1'"
    assert loaded(scp("a", own + "'A'" + here) + scp("b", own + "'B'" + here) + pipes)
    assert loaded(scp("a", own + "'A'" + here) + scp("b", own + "'A', bind_addr = '127.0.0.2'") + pipes)
    (found,) = problems(scp("a", own + "'A'") + scp("b", own + "'B'" + here) + pipes)
    assert found.what == "port 104 is shared with [endpoints.a.options], which has it on 0.0.0.0"
    Authority(tmp_path).issue("own")
    secured = ", tls = { cert_file = 'own.crt', key_file = 'own.key' }"
    assert loaded(scp("a", own + "'A'" + secured) + scp("b", own + "'B'" + secured) + pipes)
    (found,) = problems(scp("a", own + "'A'" + secured) + scp("b", own + "'B'") + pipes)
    assert found.what == "port 104 is shared with [endpoints.a.options], and TLS there is not the same"


@pytest.mark.parametrize("folder", ["tmp/spool", "tmp/quarantine/x", "tmp/run", "tmp/log", "tmp/operations"])
def test_objects_are_not_kept_among_our_own_files(problems, folder):
    """Neither a storage backend nor an endpoint keeps objects where spool, quarantine, locks or logs are."""
    backend = f'[backends.b]\nservice = "storage"\noptions = {{ path = "{folder}" }}\n'
    found = problems(backend + scp("a", f"storage_dir = '{folder}'"))
    assert sorted(places(found)) == [("backends.b.options", "path"), ("endpoints.a.options", "storage_dir")]


def test_objects_may_be_kept_below_the_storage_path(loaded):
    """Beside harmonyd's own folders there is room, and two may share a folder."""
    backend = '[backends.{0}]\nservice = "storage"\noptions = {{ path = "tmp/received/a" }}\n'
    assert loaded(backend.format("b") + backend.format("c"))
