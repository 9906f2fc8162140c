"""A received object's JSON view."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from twisted.logger import Logger

from harmonyd.bodies import ObjectBody
from harmonyd.dimse.dataset_json import MalformedDataset, file_to_json

__all__ = ["ObjectBody", "json_view"]

_log = Logger()


def json_view(path: Path) -> Any:
    """The object for middleware to look at (DICOM JSON Model, no bulk data); None when there is none. Blocking."""
    try:
        return json.loads(file_to_json(path))
    except MalformedDataset as error:
        # It was received whole, and whoever it is for may be able to read it.
        _log.warn("no JSON of {name} for middleware: {why}", name=path.name, why=error.detail)
        return None
