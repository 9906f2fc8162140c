"""The command itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from harmonyd import __version__
from harmonyd import config as configuration
from harmonyd.config.archive_model import DicomwebBackendOptions
from harmonyd.config.model import Config, DicomBackendOptions
from harmonyd.daemon.build import Folders
from harmonyd.daemon.lock import LOCK_NAME, RunLock
from harmonyd.daemon.named import asked_backends
from harmonyd.daemon.process import EXIT_CONFIGURATION, EXIT_FAILED, EXIT_OK
from harmonyd.doctor.case import Case, case_of
from harmonyd.doctor.output import Table, backend_json, summary
from harmonyd.doctor.report import Result, Step, worst
from harmonyd.doctor.walk import walk

DEFAULT_TIMEOUT_SECS = 30.0
_EXAMINED = (DicomBackendOptions, DicomwebBackendOptions)


def doctor(
    config_path: Path,
    backend: str | None = None,
    *,
    as_json: bool = False,
    timeout_secs: float = DEFAULT_TIMEOUT_SECS,
) -> int:
    """Examine the dicom and dicomweb backends, or one; print what is found; return the exit status.

    ``timeout_secs``: no wait is longer, nor longer than the backend's own timeouts.
    """
    try:
        config = configuration.load(config_path)
    except configuration.ConfigError as error:
        print(error, file=sys.stderr)
        return EXIT_CONFIGURATION
    dicom = [name for name, found in config.backends.items() if isinstance(found.options, _EXAMINED)]
    if not dicom or backend not in (None, *dicom):
        asked = "no dicom backend is configured" if not dicom else f"no dicom backend {backend!r}"
        known = f"; there are: {', '.join(dicom)}" if dicom else ""
        print(f"harmonyd: {config_path}: {asked}{known}", file=sys.stderr)
        return EXIT_CONFIGURATION
    cases = _cases(config, dicom if backend is None else [backend], timeout_secs)
    result = _as_json(config_path, cases) if as_json else _as_table(cases)
    return EXIT_FAILED if result is Result.ERROR else EXIT_OK


def _cases(config: Config, names: list[str], timeout_secs: float) -> list[Case]:
    asked = asked_backends(config)
    daemon = RunLock(Folders(config.storage.path).run / LOCK_NAME).holder()
    cases = []
    for name in names:
        options = config.backends[name].options
        assert isinstance(options, _EXAMINED)
        cases.append(case_of(name, options, timeout_secs, is_asked=name in asked, daemon=daemon))
    return cases


def _as_table(cases: list[Case]) -> Result:
    table, results = Table(), []
    for case in cases:
        print(table.heading(case), flush=True)
        steps: list[Step] = []
        for step in walk(case):
            steps.append(step)
            print("\n".join(table.lines(step)), flush=True)
        results.append((case.name, worst([step.result for step in steps])))
        print()
    print(summary(results))
    return worst([result for _, result in results])


def _as_json(config_path: Path, cases: list[Case]) -> Result:
    found = [backend_json(case, list(walk(case))) for case in cases]
    result = worst([Result(one["result"]) for one in found])
    document = {"harmonyd": __version__, "config": str(config_path), "result": result.value, "backends": found}
    print(json.dumps(document, indent=2))
    return result
