"""The tables of config.toml that stand alone."""

from __future__ import annotations

import pytest

from harmonyd.config.daemon import CacheConfig, OperationsConfig, SpoolConfig, SupervisionConfig
from harmonyd.config.model import LimitsConfig

PROXY = '[proxy]\nid = "x"\n'
NETWORK = '[network.n.http]\nbind_address = "127.0.0.1"\nbind_port = 8080\n[network.d.dicom]\nbind_port = 11112\n'


def test_defaults(loaded, tmp_path):
    """Only an id is required; everything else has the documented default."""
    config = loaded(main=PROXY)
    assert config.logging.level == "info"
    assert config.logging.file is None
    assert config.storage.path == tmp_path / "tmp"
    assert (config.storage.retention_max_age_secs, config.storage.retention_max_bytes) == (86400, 5_000_000_000)
    assert config.limits == LimitsConfig()
    assert config.supervision == SupervisionConfig()
    assert config.spool == SpoolConfig()
    assert config.operations == OperationsConfig()
    assert config.cache == CacheConfig()
    assert config.management.base_path == "/admin"
    assert config.telemetry.network is None


def test_values_reach_the_model(loaded, tmp_path):
    """Each key sets its field, in the unit of the model."""
    config = loaded(
        main=PROXY + NETWORK + "[storage.options]\npath = '/srv/h'\n"
        "retention_max_age_hours = 1.5\nretention_max_gb = 2\n"
        "[limits]\nmax_json_bytes = 2000\nrequest_timeout_secs = 5\n"
        "[supervision]\nbackoff_initial_secs = 2\nbackoff_max_secs = 30.5\nlog_backups = 0\n"
        "[logging]\nlog_to_file = true\nlog_file_path = 'h.log'\nformat = 'json'\n"
        "[telemetry]\nnetwork = 'n'\n[control]\n"
    )
    assert str(config.storage.path) == "/srv/h"
    assert (config.storage.retention_max_age_secs, config.storage.retention_max_bytes) == (5400, 2_000_000_000)
    assert (config.limits.max_json_bytes, config.limits.request_timeout_secs) == (2000, 5.0)
    supervision = config.supervision
    assert (supervision.backoff_initial_secs, supervision.backoff_max_secs, supervision.log_backups) == (2.0, 30.5, 0)
    assert (config.logging.format, config.logging.file) == ("json", tmp_path / "h.log")
    assert config.telemetry.network == "n"


def test_the_cache_is_sized_in_units_of_people(loaded):
    """Times and sizes in the file's units, in seconds and bytes in the model; nothing is larger than the whole."""
    text = "[cache]\nenabled = false\nmax_gb = 1.5\nmax_age_minutes = 2\nmin_free_mb = 3\nmax_prefetches = 0\n"
    config = loaded(main=PROXY + text)
    assert config.cache == CacheConfig(False, 1_500_000_000, 120.0, 1_500_000_000, 3_000_000, 0)


def test_the_spool_is_sized_in_units_of_people(loaded):
    """Megabytes, gigabytes and hours become bytes and seconds."""
    text = "[spool]\nmin_free_mb = 5\nballast_mb = 0\nmax_waiting = 7\nmax_waiting_gb = 1.5\nmax_attempts = 2\n"
    config = loaded(main=PROXY + text + "give_up_after_hours = 0.5\nretry_max_secs = 60\nmax_unasked_gb = 0\n")
    assert config.spool == SpoolConfig(5_000_000, 0, 7, 1_500_000_000, 2, 1800.0, 60.0, 0)


def test_operations_are_limited_in_units_of_people(loaded):
    """Minutes and gigabytes become seconds and bytes."""
    text = "[operations]\nmax_running = 1\nmax_kept = 2\nmax_watchers = 3\nkeep_minutes = 0.5\nmax_gb = 0.25\n"
    assert loaded(main=PROXY + text).operations == OperationsConfig(1, 2, 3, 30.0, 250_000_000)


@pytest.mark.parametrize(
    ("text", "table", "key"),
    [
        ("[network.n.http]\nbind_port = 80\n", "network.n.http", "bind_address"),
        ("[network.n.http]\nbind_address = '::'\n", "network.n.http", "bind_port"),
        ("[network.n.http]\nbind_address = 'localhost'\nbind_port = 80\n", "network.n.http", "bind_address"),
        ("[network.n.http]\nbind_address = '::'\nbind_port = 0\n", "network.n.http", "bind_port"),
        ("[network.n]\nhttps = 1\n", "network.n", "https"),
        ("[network.n.dicom]\naet = 'A\\B'\n", "network.n.dicom", "aet"),
        ("[storage]\nbackend = 's3'\n", "storage", "backend"),
        ("[storage.options]\nretention_max_gb = 0\n", "storage.options", "retention_max_gb"),
        ("[storage.options]\npath = ''\n", "storage.options", "path"),
        ("[logging]\nlog_to_file = true\n", "logging", "log_to_file"),
        ("[logging]\nlog_file_path = 'a\tb'\n", "logging", "log_file_path"),
        ("[logging]\nformat = 'xml'\n", "logging", "format"),
        ("[limits]\nmax_connections = 0\n", "limits", "max_connections"),
        ("[supervision]\nbackoff_initial_secs = 70\n", "supervision", "backoff_initial_secs"),
        ("[supervision]\nprobe_misses = 1.5\n", "supervision", "probe_misses"),
        ("[spool]\nmin_free_mb = 0\n", "spool", "min_free_mb"),
        ("[operations]\nmax_running = 0\n", "operations", "max_running"),
        ("[operations]\nmax_gb = 0\n", "operations", "max_gb"),
        ("[operations]\nkeep_secs = 5\n", "operations", "keep_secs"),
        ("[spool]\nballast_mb = -1\n", "spool", "ballast_mb"),
        ("[spool]\nmax_waiting = 0\n", "spool", "max_waiting"),
        ("[spool]\nmax_waiting_gb = '1'\n", "spool", "max_waiting_gb"),
        ("[spool]\nmax_attempts = 0\n", "spool", "max_attempts"),
        ("[spool]\ngive_up_after_hours = 9000\n", "spool", "give_up_after_hours"),
        ("[spool]\nretry_max_secs = 0.5\n", "spool", "retry_max_secs"),
        ("[spool]\nmax_unasked_gb = -1\n", "spool", "max_unasked_gb"),
        ("[spool]\nmin_free = 5\n", "spool", "min_free"),
        ("[cache]\nmax_gb = 0\n", "cache", "max_gb"),
        ("[cache]\nmax_age_minutes = 0\n", "cache", "max_age_minutes"),
        ("[cache]\nmax_prefetches = -1\n", "cache", "max_prefetches"),
        ("[cache]\nenabled = 1\n", "cache", "enabled"),
        ("[cache]\nmax_age = 5\n", "cache", "max_age"),
        ("[telemetry]\nnetwork = 'm'\n", "telemetry", "network"),
        (NETWORK + "[telemetry]\nnetwork = 'd'\n", "telemetry", "network"),
        ("[telemetry]\nnetwork = 3\n", "telemetry", "network"),
        ("[management]\nenabled = true\n", "management", "enabled"),
        ("[management]\nbase_path = '/'\n", "management", "base_path"),
        ("[services.htp]\n", "services", "htp"),
        ("[middleware_types.passthrough]\n", "middleware_types", "passthrough"),
    ],
)
def test_one_mistake(problems, text, table, key):
    """Each of these has exactly one mistake, told at its table and key."""
    assert [(problem.table, problem.key) for problem in problems(main=PROXY + text)] == [(table, key)]


def test_the_wrong_network_gets_the_nearest(problems):
    """A mistyped network of [telemetry] is answered with the nearest."""
    assert problems(main=PROXY + "[network.public]\n[telemetry]\nnetwork = 'pulbic'\n")[0].nearest == "public"


def test_a_mistyped_log_level_gets_the_nearest(problems):
    """A mistyped level is answered with the nearest."""
    assert problems(main='[proxy]\nid = "x"\nlog_level = "inof"\n')[0].nearest == "info"


def test_a_socket_from_systemd_needs_no_port(loaded):
    """The socket unit has the port; one in the file is told to have no effect."""
    text = '[network.n.http]\nbind_address = "systemd:web"\n'
    config = loaded(main=PROXY + text)
    assert (config.networks["n"].http.bind_address, config.networks["n"].http.bind_port) == ("systemd:web", 0)
    assert any("socket unit" in line for line in loaded(main=PROXY + text + "bind_port = 80\n").warnings)


def test_switching_the_log_file_off_keeps_its_path(loaded):
    """A path with log_to_file = false is not used."""
    assert loaded(main=PROXY + "[logging]\nlog_to_file = false\nlog_file_path = 'x.log'\n").logging.file is None


def test_trace_is_debug_and_said_so(loaded):
    """Harmony's finest level is our finest level, with a warning."""
    config = loaded(main='[proxy]\nid = "x"\nlog_level = "trace"\n')
    assert config.logging.level == "debug"
    assert "trace" in config.warnings[0]


def test_registrations_of_known_names_are_accepted(loaded):
    """Registrations have no effect, and one warning a table says so."""
    text = "[services.http]\nmodule = ''\n[services.dicom]\nmodule = ''\n[middleware_types.metadata]\n"
    told = [line for line in loaded(main=PROXY + text).warnings if "module" in line]
    assert len(told) == 1
    assert "(http, dicom)" in told[0]


def test_a_log_that_names_patients_is_warned_about(loaded):
    """It is off unless asked for."""
    assert loaded(main=PROXY).logging.patient_identifiers is False
    config = loaded(main=PROXY + "[logging]\npatient_identifiers = true\n")
    assert config.logging.patient_identifiers is True
    assert any("identifies patients" in line for line in config.warnings)


def test_tracing_is_off_unless_enabled(loaded):
    """Its other keys alone change nothing."""
    text = "[telemetry.tracing]\nendpoint = 'http://127.0.0.1:4318/v1/traces'\nsample_ratio = 0.5\n"
    assert loaded(main=PROXY + text).telemetry.tracing is None
    tracing = loaded(main=PROXY + text + "enabled = true\n").telemetry.tracing
    assert (tracing.endpoint, tracing.sample_ratio) == ("http://127.0.0.1:4318/v1/traces", 0.5)
