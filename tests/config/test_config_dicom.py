"""Options of the dicom service, both halves."""

from __future__ import annotations

import pytest

from harmonyd.config.model import DicomBackendOptions, DicomEndpointOptions

BACKEND = "[backends.b]\nservice = 'dicom'\n[backends.b.options]\naet = 'PACS'\nhost = 'pacs'\nport = 104\n"
ENDPOINT = "[endpoints.e]\nservice = 'dicom'\n[endpoints.e.options]\n"


def test_backend_defaults(loaded):
    """AE title, host and port are enough; the rest is the model's default."""
    assert loaded(BACKEND).backends["b"].options == DicomBackendOptions("PACS", "pacs", 104)


def test_backend_values_reach_the_model(loaded):
    """Each key sets its field; milliseconds become seconds."""
    options = (
        loaded(
            BACKEND + "local_aet = 'ME'\nincoming_store_port = 11123\ndimse_retrieve_mode = 'move'\n"
            "connect_timeout_ms = 1500\nassociation_timeout_ms = 2000\noperation_timeout_ms = 3000\n"
            "max_pdu = 4096\nmax_associations = 2\n"
            "max_queue = 0\nmax_results = 5\nquery_model = 'patient'\nengine = 'dcmtk'\nuse_tls = false\n"
        )
        .backends["b"]
        .options
    )
    assert options == DicomBackendOptions(
        *("PACS", "pacs", 104, "ME"),
        incoming_store_port_set=True,
        move_destination_aet="ME",
        dimse_retrieve_mode="move",
        connect_timeout_secs=1.5,
        association_timeout_secs=2.0,
        operation_timeout_secs=3.0,
        max_pdu=4096,
        max_associations=2,
        max_queue=0,
        max_results=5,
        query_model="patient",
    )


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("persistent_store_scp = true", "persistent"),
        ("persistent_store_scp = false", "transient"),
        ("store_scp = 'transient'", "transient"),
        ("store_scp = 'transient'\npersistent_store_scp = false", "transient"),
    ],
)
def test_both_spellings_of_the_receiver(loaded, text, mode):
    """Harmony's spelling and ours mean the same, and may both be given."""
    assert loaded(BACKEND + text).backends["b"].options.store_scp == mode


def test_spellings_that_contradict(problems):
    """Two spellings that differ are a mistake."""
    found = problems(BACKEND + "store_scp = 'persistent'\npersistent_store_scp = false")
    assert "contradicts" in found[0].what


@pytest.mark.parametrize("missing", ["aet", "host", "port"])
def test_the_remote_node_is_required(problems, missing):
    """A backend without AE title, host or port is refused."""
    text = "\n".join(line for line in BACKEND.splitlines() if not line.startswith(missing))
    assert [(problem.key, problem.what) for problem in problems(text)] == [(missing, "missing")]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("local_aet", "'@x'"),
        ("move_destination_aet", "''"),
        ("incoming_store_port", "0"),
        ("incoming_store_port", "true"),
        ("max_pdu", "4095"),
        ("max_pdu", "131073"),
        ("max_associations", "0"),
        ("max_results", "0"),
        ("connect_timeout_ms", "0"),
        ("connect_timeout_ms", "1.5"),
        ("dimse_retrieve_mode", "'got'"),
        ("query_model", "'series'"),
        ("use_tls", "'no'"),
        ("storage_dir", "3"),
        ("calling_aet", "'X'"),
    ],
)
def test_one_mistake_in_a_backend(problems, key, value):
    """Wrong types, values out of range and unknown keys are told at their key."""
    assert [problem.key for problem in problems(BACKEND + f"{key} = {value}\n")] == [key]


@pytest.mark.parametrize("value", ["'-h'", "'@h'", "'a b'", "'1.2.3.400'"])
def test_a_host_that_could_be_something_else(problems, value):
    """A host that is an option, a file or a mistyped address is refused."""
    assert problems(BACKEND.replace("'pacs'", value))[0].key == "host"


@pytest.mark.parametrize("key", ["bind_addr", "allowed_calling_aets", "transfer_syntaxes"])
def test_an_endpoint_key_in_a_backend(problems, key):
    """A key of the SCP half in the SCU half is said to belong there."""
    problem = problems(BACKEND + f"{key} = 'x'\n")[0]
    assert problem.key == key
    assert "[endpoints.NAME.options]" in problem.remedy


def test_endpoint_defaults(loaded):
    """An SCP needs no option at all."""
    assert loaded("[endpoints.e]\nservice = 'dicom'\n").endpoints["e"].options == DicomEndpointOptions()


def test_endpoint_values_reach_the_model(loaded, tmp_path):
    """Each key sets its field."""
    text = "local_aet = 'ME'\nport = 104\nmax_pdu = 16384\nstorage_dir = 'in'\nbind_addr = '0.0.0.0'\n"
    options = loaded(ENDPOINT + text + "store_scp = 'persistent'\nallowed_calling_aets = []\n").endpoints["e"].options
    assert options == DicomEndpointOptions(local_aet="ME", port=104, max_pdu=16384, storage_dir=tmp_path / "in")


@pytest.mark.parametrize("key", ["host", "aet", "association_idle_ms", "incoming_store_port", "dimse_retrieve_mode"])
def test_a_backend_key_in_an_endpoint(problems, key):
    """A key of the SCU half in the SCP half is said to belong there, whatever its value."""
    problem = problems(ENDPOINT + f"{key} = false\n")[0]
    assert problem.key == key
    assert "[backends.NAME.options]" in problem.remedy


def test_what_is_not_built_yet_in_an_endpoint(problems):
    """Options of later features are refused with the reason."""
    found = problems(ENDPOINT + "transfer_syntaxes = []")
    assert len(found) == 1
    assert "not built yet" in found[0].what


@pytest.mark.parametrize(("key", "value"), [("port", "0"), ("port", "65536"), ("port", "'104'"), ("bind_addr", "'x'")])
def test_one_mistake_in_an_endpoint(problems, key, value):
    """Ports out of range and things that are no address are told at their key."""
    assert [problem.key for problem in problems(ENDPOINT + f"{key} = {value}\n")] == [key]


NEEDS_PER_ASSOCIATION = [
    "allowed_calling_aets = ['A']",
    "bind_addr = '127.0.0.1'",
    "bind_addr = '::1'",
    "max_associations = 3",
    "max_associations_per_peer = 3",
]


@pytest.mark.parametrize("text", NEEDS_PER_ASSOCIATION)
def test_the_receiver_is_chosen_by_what_is_asked_of_it(loaded, text):
    """Left open, the receiver is the one that can do it, and a warning says so."""
    config = loaded(ENDPOINT + text)
    assert config.endpoints["e"].options.store_scp == "per-association"
    assert any(f'"per-association" was chosen: {text.split()[0]} needs it' in line for line in config.warnings)


@pytest.mark.parametrize("text", NEEDS_PER_ASSOCIATION)
def test_a_persistent_receiver_that_cannot_do_it(loaded, problems, text):
    """Asked for by name it is a mistake that says which can; the other one takes it without a word."""
    [problem] = problems(ENDPOINT + text + "\nstore_scp = 'persistent'")
    assert problem.key == text.split()[0]
    assert "per-association" in problem.remedy
    assert loaded(ENDPOINT + text + "\nstore_scp = 'per-association'")


def test_a_receiver_without_wishes_is_persistent(loaded):
    """What both can do chooses nothing."""
    options = loaded(ENDPOINT + "association_timeout_ms = 5000\nin_order = true").endpoints["e"].options
    assert (options.store_scp, options.association_timeout_secs, options.in_order) == ("persistent", 5.0, True)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("max_associations", "0"),
        ("max_associations", "201"),
        ("max_associations_per_peer", "0"),
        ("association_timeout_ms", "0"),
        ("allowed_calling_aets", "'A'"),
        ("allowed_calling_aets", "['A_TITLE_THAT_IS_TOO_LONG']"),
        ("bind_addr", "'localhost'"),
        ("in_order", "1"),
        ("store_scp", "'transient'"),
        ("store_scp", "''"),
    ],
)
def test_one_wrong_wish_of_a_receiver(problems, key, value):
    """Wrong types, values out of range and unknown modes are told at their key."""
    assert [problem.key for problem in problems(ENDPOINT + f"{key} = {value}\n")] == [key]
