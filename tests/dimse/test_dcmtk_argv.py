"""Command lines: what is in them, what never is."""

from __future__ import annotations

from pathlib import Path

import pytest

from harmonyd.dimse.dcmtk import argv
from harmonyd.dimse.engine import MoveReceiver, QueryModel, RemoteNode

TOOL, LOG, QUERY, FOLDER = Path("/bin/tool"), Path("/run/log.cfg"), Path("/run/query.dcm"), Path("/data/dcmtk_find_1")
REMOTE = RemoteNode("main", "PACS", "::1", 104, "US", 2.5, 0.4, 16384)
RECEIVER = MoveReceiver("persistent", "DEST", 11123)


def _after(command: list[str], option: str) -> str:
    """The value of an option that stands once in a command line."""
    assert command.count(option) == 1, command
    return command[command.index(option) + 1]


def _all() -> dict[str, list[str]]:
    return {
        "echoscu": argv.echoscu(TOOL, LOG, REMOTE),
        "findscu": argv.findscu(TOOL, LOG, REMOTE, QueryModel.STUDY_ROOT, QUERY, FOLDER),
        "getscu": argv.getscu(TOOL, LOG, REMOTE, QueryModel.STUDY_ROOT, QUERY, FOLDER),
        "movescu": argv.movescu(TOOL, LOG, REMOTE, QueryModel.STUDY_ROOT, RECEIVER, QUERY, None),
        "movescu +P": argv.movescu(TOOL, LOG, REMOTE, QueryModel.STUDY_ROOT, RECEIVER, QUERY, FOLDER),
        "storescu": argv.storescu(TOOL, LOG, REMOTE, Path("/run/profile.cfg"), [Path("/data/1.dcm")]),
    }


@pytest.mark.parametrize("name", _all())
def test_what_every_scu_is_told(name: str) -> None:
    """Who we are and whom we call, the log configuration, every limit in whole seconds that are never 0 (for ever)."""
    command = _all()[name]
    assert command[0] == "/bin/tool"
    assert _after(command, "-lc") == "/run/log.cfg"
    assert (_after(command, "-aet"), _after(command, "-aec")) == ("US", "PACS")
    assert _after(command, "-to") == "3"
    assert _after(command, "-ta") == _after(command, "-td") == "1"
    assert _after(command, "-pdu") == "16384"
    at = command.index("::1")
    assert command[at + 1] == "104"


@pytest.mark.parametrize("name", ["findscu", "getscu", "movescu", "movescu +P"])
def test_the_identifier_is_a_file(name: str) -> None:
    """No key is on the command line: the query file is the last argument."""
    command = _all()[name]
    assert command[-1] == "/run/query.dcm"
    assert "-k" not in command


@pytest.mark.parametrize(("model", "option"), [(QueryModel.STUDY_ROOT, "-S"), (QueryModel.PATIENT_ROOT, "-P")])
def test_the_query_model(model: QueryModel, option: str) -> None:
    """findscu's default is Modality Worklist, so the model is always given."""
    commands = (
        argv.findscu(TOOL, LOG, REMOTE, model, QUERY, FOLDER),
        argv.getscu(TOOL, LOG, REMOTE, model, QUERY, FOLDER),
        argv.movescu(TOOL, LOG, REMOTE, model, RECEIVER, QUERY, None),
    )
    assert all({"-S", "-P", "-O", "-W"} & set(command) == {option} for command in commands)


def test_a_find_writes_its_responses() -> None:
    """Each response becomes a file in the operation's folder."""
    command = _all()["findscu"]
    assert "-X" in command
    assert _after(command, "-od") == "/data/dcmtk_find_1"


def test_a_get_writes_under_safe_names() -> None:
    """Never with +B, which would write to any path that a peer's SOP Instance UID names."""
    command = _all()["getscu"]
    assert not {"+B", "--bit-preserving"} & set(command)
    assert _after(command, "-od") == "/data/dcmtk_find_1"


def test_a_move_to_a_receiver_of_ours() -> None:
    """With a receiver that is kept, movescu gets no port and no folder, only the destination."""
    command = _all()["movescu"]
    assert _after(command, "-aem") == "DEST"
    assert not {"+P", "-od", "+xa"} & set(command)


def test_a_move_that_receives_itself() -> None:
    """Without one, movescu listens on the port, takes every transfer syntax, and writes into the operation's folder."""
    command = _all()["movescu +P"]
    assert _after(command, "+P") == "11123"
    assert _after(command, "-od") == "/data/dcmtk_find_1"
    assert "+xa" in command
    assert "+B" not in command


def test_a_store_goes_on_after_a_refusal() -> None:
    """-nh: one instance that is refused does not keep the others from being sent; contexts come from a profile."""
    command = _all()["storescu"]
    assert "-nh" in command
    at = command.index("-xf")
    assert command[at + 1 : at + 3] == ["/run/profile.cfg", "Default"]
    assert command[-1] == "/data/1.dcm"


def test_a_receiver() -> None:
    """storescp keeps every byte, overwrites nothing, takes every transfer syntax, runs no command and forks not."""
    command = argv.storescp(
        TOOL, local_aet="US", port=11123, folder=Path("/data/in"), max_pdu=16384, association_timeout_secs=7
    )
    assert {"+B", "+uf", "+xa"} <= set(command)
    assert _after(command, "-od") == "/data/in"
    assert _after(command, "-aet") == "US"
    assert command[-1] == "11123"
    assert not {"--fork", "-xcr", "--exec-on-reception", "-xcs", "--exec-on-eostudy"} & set(command)
