"""The viewer looks at the same gateway as the end-to-end tests of DICOMweb."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "e2e"))
