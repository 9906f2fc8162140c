"""Every TOML fragment of Harmony's DIMSE guide works as it is written there."""

from __future__ import annotations

import re

import pytest

SEED = """
### Backend Usage (SCU - Service Class User)

```toml
[backends.my_pacs]
service = "dicom"

[backends.my_pacs.options]
aet = "ORTHANC"
host = "localhost"
port = 4242
local_aet = "HARMONY_SCU"
use_tls = false
```

### Endpoint Usage (SCP - Service Class Provider)

```toml
[endpoints.dicom_scp]
service = "dicom"

[endpoints.dicom_scp.options]
local_aet = "HARMONY_SCP"
# bind_addr = "0.0.0.0"
# port = 11112
```

### HTTP→DICOM Bridge (via HTTP endpoint + DICOM backend)

```toml
[pipelines.dicom_backend_demo]
description = "Demo DICOM backend usage - HTTP request triggers DIMSE SCU operations"
networks = ["default"]
endpoints = ["http_to_dicom"]
middleware = []
backends = ["dicom_pacs"]

[endpoints.http_to_dicom]
service = "http"
options = { path_prefix = "/dicom" }

[backends.dicom_pacs]
service = "dicom"

[backends.dicom_pacs.options]
aet = "ORTHANC"
host = "localhost"
port = 4242
local_aet = "HARMONY_SCU"
```
"""
FRAGMENTS = re.findall(r"```toml\n(.*?)```", SEED, re.DOTALL)


def test_the_copy_has_every_fragment():
    """The guide has three TOML fragments."""
    assert len(FRAGMENTS) == 3


@pytest.mark.parametrize("number", range(len(FRAGMENTS)))
def test_a_fragment_alone_in_a_pipelines_file_loads(loaded, number):
    """Each fragment loads on its own, without a pipeline that names what it defines."""
    config = loaded(FRAGMENTS[number])
    assert config.endpoints or config.backends


def test_all_fragments_load_together(loaded):
    """All fragments, each in a file of its own, make one configuration."""
    config = loaded(FRAGMENTS[0], two=FRAGMENTS[1], three=FRAGMENTS[2])
    assert sorted(config.backends) == ["dicom_pacs", "my_pacs"]
    assert sorted(config.endpoints) == ["dicom_scp", "http_to_dicom"]
    assert config.pipelines["dicom_backend_demo"].backends == ("dicom_pacs",)


def test_all_fragments_load_from_one_file(loaded):
    """All fragments in one file make one configuration as well."""
    assert len(loaded("".join(FRAGMENTS)).backends) == 2


def test_the_commented_defaults_are_the_defaults(loaded):
    """Uncommenting what the guide comments out changes nothing."""
    plain = loaded(FRAGMENTS[1]).endpoints["dicom_scp"]
    assert loaded(FRAGMENTS[1].replace("# ", "")).endpoints["dicom_scp"] == plain
