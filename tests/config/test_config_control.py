"""[control] and [management]."""

from __future__ import annotations

import pytest

PROXY = '[proxy]\nid = "x"\n'
STORAGE = '[storage.options]\npath = "/srv/h"\n'
TCP = '[control]\nbind_address = "127.0.0.1"\nbind_port = 9001\nusername = "operator"\n'
NETWORKS = (
    '[network.in.http]\nbind_address = "127.0.0.1"\nbind_port = 8081\n'
    '[network.in6.http]\nbind_address = "::1"\nbind_port = 8082\n'
    '[network.out.http]\nbind_address = "0.0.0.0"\nbind_port = 8080\n'
    '[network.passed.http]\nbind_address = "systemd:web"\n'
)


def test_defaults(loaded):
    """A unix socket below the storage path, for owner and group, and no TCP port."""
    control = loaded(main=PROXY + STORAGE).control
    assert (str(control.socket), control.mode) == ("/srv/h/run/control.sock", 0o660)
    assert control.bind_address is None


def test_values_reach_the_model(loaded, tmp_path):
    """Each key sets its field; a relative socket is relative to the file."""
    control = loaded(main=PROXY + TCP + 'password = "p"\nsocket = "c.sock"\nmode = "0600"\n').control
    assert (control.socket, control.mode) == (tmp_path / "c.sock", 0o600)
    assert (control.bind_address, control.bind_port) == ("127.0.0.1", 9001)
    assert (control.username, control.password) == ("operator", "p")


def test_a_password_can_be_elsewhere(loaded, tmp_path, monkeypatch):
    """In a file, without its last newline, or in the environment; then there is nothing to warn of."""
    (tmp_path / "secret").write_text("from file\n")
    monkeypatch.setenv("CONTROL_PASSWORD", "from env")
    config = loaded(main=PROXY + TCP + 'password = "file:secret"\n')
    assert config.control.password == "from file"
    assert not [warning for warning in config.warnings if ": [control]" in warning]
    assert loaded(main=PROXY + TCP + 'password = "env:CONTROL_PASSWORD"\n').control.password == "from env"


def test_a_plain_password_is_warned_of_and_never_shown(loaded):
    """The warning does not show it, nor does the model."""
    config = loaded(main=PROXY + TCP + 'password = "geheim"\n')
    assert any("password" in warning for warning in config.warnings)
    assert "geheim" not in str(config.warnings) + repr(config)


def test_a_password_in_the_clear_on_the_network_is_warned_of(loaded):
    """Basic authentication protects nothing from whoever listens."""
    main = PROXY + TCP.replace("127.0.0.1", "0.0.0.0") + 'password = "p"\n'
    assert any("tunnel" in warning for warning in loaded(main=main).warnings)


@pytest.mark.parametrize(
    ("text", "keys"),
    [
        ('[control]\nbind_port = 9001\nusername = "a"\npassword = "b"\n', ["bind_address"]),
        ('[control]\nbind_address = "::1"\n', ["bind_port", "username", "password"]),
        (TCP, ["password"]),
        (TCP + 'password = ""\n', ["password"]),
        (TCP + 'password = "file:nothing"\n', ["password"]),
        (TCP + 'password = "env:NO_SUCH_VARIABLE"\n', ["password"]),
        (TCP.replace("operator", "a:b") + 'password = "p"\n', ["username"]),
        (TCP.replace("9001", "0") + 'password = "p"\n', ["bind_port"]),
        ('[control]\nmode = "rw"\n', ["mode"]),
        ('[control]\nmode = "0999"\n', ["mode"]),
        ("[control]\nmode = 432\n", ["mode"]),
        (f'[control]\nsocket = "/{"x" * 107}"\n', ["socket"]),
        ('[control]\nsoket = "x"\n', ["soket"]),
        ("[management]\nenabled = true\n", ["enabled"]),
        (NETWORKS + '[management]\nenabled = true\nnetwork = "out"\n', ["network"]),
        (NETWORKS + '[management]\nenabled = true\nnetwork = "passed"\n', ["network"]),
        (NETWORKS + '[management]\nenabled = true\nnetwork = "nope"\n', ["network"]),
        (NETWORKS + TCP.replace("9001", "8081") + 'password = "p"\n', ["bind_port"]),
    ],
)
def test_mistakes(problems, text, keys):
    """Each is told at its key."""
    found = problems(main=PROXY + text)
    assert [problem.key for problem in found] == keys


def test_a_default_socket_path_that_is_too_long_is_warned_of(loaded):
    """The daemon works without it, and says that supervisorctl will not."""
    config = loaded(main=PROXY + f'[storage.options]\npath = "/{"x" * 100}"\n')
    assert config.control.socket is None
    assert any("supervisorctl" in warning for warning in config.warnings)


@pytest.mark.parametrize("network", ["in", "in6"])
def test_management_on_a_network_of_this_machine(loaded, network):
    """It is served there, at its base path."""
    management = loaded(main=PROXY + NETWORKS + f'[management]\nenabled = true\nnetwork = "{network}"\n').management
    assert (management.enabled, management.network, management.base_path) == (True, network, "/admin")
