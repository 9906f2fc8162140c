"""The reference page shows what is true."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from harmonyd.config import ConfigError, load
from harmonyd.config.daemon import CacheConfig, OperationsConfig, SpoolConfig, SupervisionConfig
from harmonyd.config.model import LimitsConfig

PAGE = (Path(__file__).parents[2] / "docs/configuration.md").read_text("utf-8")
WRONG_PIPELINES = {
    "pacs": """
[pipelines.pacs]
networks = ["default"]
endpoints = ["pacs_htpt"]
backends = ["pacs"]
[endpoints.pacs_http]
service = "http"
options = { path_prefix = "/dicom" }
[backends.pacs]
service = "dicom"
[backends.pacs.options]
aet = "A_TITLE_THAT_IS_TOO_LONG"
port = 104
use_tls = true
tls = { ca_file = "tls/hospital-ca.crt" }
""",
    "scp": """
[pipelines.scp]
endpoints = ["scp"]
[endpoints.scp]
service = "dicom"
options = { local_aet = "HARMONY_SCP", bind_addr = "127.0.0.1", store_scp = "persistent" }
""",
}
WRONG_MAIN = """
[proxy]
id = "harmonyd"
log_level = "inof"
[network.default.http]
bind_address = "127.0.0.1"
bind_port = 80800
"""


def test_the_first_configuration_loads(loaded):
    """The two files of the page, as they are there, make a configuration without a warning."""
    main, pipelines = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    config = loaded(pipelines, main=main)
    assert config.warnings == ()
    assert config.backends["pacs"].options.aet == "ORTHANC"


def test_the_example_of_routing_loads(loaded):
    """Rules and pipeline of the page, put together, make a configuration without a warning."""
    [rules] = re.findall(r"```\n(\[middleware.by_modality].*?)```", PAGE, re.DOTALL)
    [pipeline] = re.findall(r"```\n(\[pipelines.inbound].*?)```", PAGE, re.DOTALL)
    config = loaded(pipeline + rules)
    assert config.warnings == ()
    assert [rule.backends for rule in config.middleware["by_modality"].options["rules"]] == [
        ("archive",),
        ("archive", "ai"),
        (),
    ]


def test_the_sample_of_mistakes_is_real(write):
    """The page shows what harmonyd says of such files, word by word."""
    path = write(WRONG_MAIN, **WRONG_PIPELINES)
    with pytest.raises(ConfigError) as caught:
        load(path)
    shown = str(caught.value).replace(f"{path.parent}/", "etc/harmonyd/")
    assert f"```\n{shown}\n```" in PAGE


@pytest.mark.parametrize("model", [LimitsConfig(), SupervisionConfig()])
def test_documented_defaults_are_those_of_the_model(model):
    """Each key of [limits] and [supervision] is in a table with its default."""
    for key in model.__slots__:
        value = getattr(model, key)
        shown = str(value).lower() if isinstance(value, bool) else f"{value:.15g}"
        assert f"| `{key}` | `{shown}` |" in PAGE


def test_documented_defaults_of_operations():
    """Each key of [operations] is in its table with the default, in its unit."""
    operations = OperationsConfig()
    documented = {
        "max_running": operations.max_running,
        "max_kept": operations.max_kept,
        "max_watchers": operations.max_watchers,
        "keep_minutes": operations.keep_secs / 60,
        "max_gb": operations.max_bytes / 1e9,
    }
    assert len(documented) == len(operations.__slots__)
    for key, value in documented.items():
        assert f"| `{key}` | `{value:.15g}` |" in PAGE


def test_documented_defaults_of_the_cache():
    """Each key of [cache] is in its table with the default, in its unit."""
    cache = CacheConfig()
    documented = {
        "max_gb": cache.max_bytes / 1e9,
        "max_age_minutes": cache.max_age_secs / 60,
        "max_series_gb": cache.max_series_bytes / 1e9,
        "min_free_mb": cache.min_free_bytes / 1e6,
        "max_prefetches": cache.max_prefetches,
    }
    assert len(documented) + len(["enabled"]) == len(cache.__slots__)
    for key, value in documented.items():
        assert f"| `{key}` | `{value:.15g}` |" in PAGE
    assert cache.enabled
    assert "| `enabled` | `true` |" in PAGE


def test_documented_defaults_of_the_spool():
    """Each key of [spool] is in its table with the default, in its unit."""
    spool = SpoolConfig()
    documented = {
        "min_free_mb": spool.min_free_bytes / 1e6,
        "ballast_mb": spool.ballast_bytes / 1e6,
        "max_waiting": spool.max_waiting,
        "max_waiting_gb": spool.max_waiting_bytes / 1e9,
        "max_attempts": spool.max_attempts,
        "give_up_after_hours": spool.give_up_after_secs / 3600,
        "retry_max_secs": spool.retry_max_secs,
        "max_unasked_gb": spool.max_unasked_bytes / 1e9,
    }
    assert len(documented) == len(spool.__slots__)
    for key, value in documented.items():
        assert f"| `{key}` | `{value:.15g}` |" in PAGE
