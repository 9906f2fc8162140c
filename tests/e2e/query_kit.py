"""What the end-to-end tests of query and retrieve as an SCP share: a daemon in front of a PACS, and callers of both."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydicom import Dataset, dcmread
from pynetdicom import AE
from pynetdicom.association import Association

from harmonyd.testing.config_files import write_config
from harmonyd.testing.daemon import RunningDaemon
from harmonyd.testing.processes import dcmtk, free_port

AET = "HARMONY_QR"
STUDY_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.2.1"
PATIENT_ROOT_FIND = "1.2.840.10008.5.1.4.1.2.1.1"
WORKLIST_FIND = "1.2.840.10008.5.1.4.31"
ALL_SERVICES = ("find", "get", "move")
STUDY_KEYS = (
    *("QueryRetrieveLevel=STUDY", "PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyInstanceUID"),
    *("StudyDate", "StudyTime", "AccessionNumber", "StudyID", "StudyDescription", "ReferringPhysicianName"),
    *("ModalitiesInStudy", "NumberOfStudyRelatedSeries", "NumberOfStudyRelatedInstances"),
)
OSIRIX_KEYS = (
    *("SpecificCharacterSet=ISO_IR 100", "QueryRetrieveLevel=STUDY", "PatientName=*", "PatientID", "AccessionNumber"),
    *("StudyDescription", "StudyDate=19900101-20991231", "StudyTime", "StudyInstanceUID", "StudyID"),
    *("PatientBirthDate", "ModalitiesInStudy", "NumberOfStudyRelatedInstances", "InstitutionName"),
    # Study Status and Interpretation Status IDs are retired.
    *("ReferringPhysicianName", "PerformingPhysicianName", "0032,000A", "4008,0212"),
)
WEASIS_KEYS = (
    *("QueryRetrieveLevel=STUDY", "PatientID", "IssuerOfPatientID", "PatientName", "PatientBirthDate", "PatientSex"),
    *("ReferringPhysicianName", "StudyDescription", "StudyDate", "StudyTime", "AccessionNumber", "StudyInstanceUID"),
    "StudyID",
)
RUNS_ALONE = ("-v", "-to", "10", "-ta", "20", "-td", "30")


@dataclass(frozen=True, slots=True)
class Node:
    """Where a caller asks."""

    aet: str
    port: int


def endpoint(port: int, services: Sequence[str] = ALL_SERVICES, **options: Any) -> dict[str, Any]:
    """Options of an endpoint that answers questions."""
    given = {"engine": "native", "local_aet": AET, "bind_addr": "127.0.0.1", "services": list(services)}
    return {"service": "dicom", "port": port, **given, **options}


def several(
    folder: Path,
    given: Mapping[str, tuple[Mapping[str, Any], Mapping[str, Any]]],
    middleware: Mapping[str, Any] | None = None,
    **options: Any,
) -> tuple[RunningDaemon, dict[str, Node]]:
    """A daemon, not started, with an endpoint and a pipeline for each name: its backends, and more of the pipeline.

    Backends of different pipelines have different names. ``options``: of every endpoint.
    """
    ports = {name: free_port() for name in given}
    pipelines = {
        name: {
            "description": "for a test",
            "networks": ["default"],
            "endpoints": [f"qr-{name}"],
            "middleware": [],
            "backends": list(backends),
            **more,
        }
        for name, (backends, more) in given.items()
    }
    limits = {"max_associations": 50, "max_associations_per_peer": 50}
    config = write_config(
        folder,
        http_port=free_port(),
        backends={name: options for backends, _ in given.values() for name, options in backends.items()},
        endpoints={f"qr-{name}": endpoint(port, **{**limits, **options}) for name, port in ports.items()},
        middleware=middleware,
        pipelines=pipelines,
    )
    return RunningDaemon(config), {name: Node(AET, port) for name, port in ports.items()}


def dataset(**keys: Any) -> Dataset:
    """An identifier."""
    ds = Dataset()
    for keyword, value in keys.items():
        setattr(ds, keyword, value)
    return ds


def associate(node: Node, *sop_classes: str, **options: Any) -> Association:
    """An association of pynetdicom's, which must be accepted."""
    ae = AE(ae_title="WORKSTATION")
    ae.connection_timeout = ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = 20
    for uid in sop_classes:
        ae.add_requested_context(uid, options.pop("syntaxes", None))
    assoc = ae.associate("127.0.0.1", node.port, ae_title=node.aet, **options)
    assert assoc.is_established
    return assoc


def findscu(node: Node, folder: Path, *keys: str, model: str = "-S", options: Sequence[str] = ()) -> list[Dataset]:
    """The matches of findscu, as they came; its final status must be Success."""
    folder.mkdir()
    flags = [flag for key in keys for flag in ("-k", key)]
    argv = [dcmtk("findscu"), *RUNS_ALONE, model, *options, "-X", "-od", str(folder), "-aet", "WORKSTATION"]
    done = subprocess.run(
        [*argv, "-aec", node.aet, *flags, "127.0.0.1", str(node.port)],
        check=True, capture_output=True, stdin=subprocess.DEVNULL, env={"TCP_NODELAY": "1", "PATH": "/usr/bin"},
    )  # fmt: skip
    said = (done.stdout + done.stderr).decode("utf-8", "replace")
    assert "Received Final Find Response (Success)" in said, said
    return [dcmread(path) for path in sorted(folder.iterdir())]


def find(assoc: Association, ds: Dataset, model: str = STUDY_ROOT_FIND) -> list[tuple[Dataset, Dataset | None]]:
    """Every response with its identifier."""
    return list(assoc.send_c_find(ds, model))


def raw_elements(ds: Dataset) -> dict[str, Any]:
    """Tag and undecoded value of each element."""
    return {str(tag): _raw(ds.get_item(tag)) for tag in ds.keys()}  # noqa: SIM118 - they are not its elements


def _raw(element: Any) -> Any:
    if element.VR == "SQ" and not isinstance(element.value, bytes):
        return [raw_elements(item) for item in element.value]
    return element.value


def as_set(found: Sequence[Dataset]) -> list[str]:
    """Data sets that can be compared in whatever order they came."""
    return sorted(repr(sorted(raw_elements(ds).items())) for ds in found)
