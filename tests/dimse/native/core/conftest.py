"""The captures' script is beside what it makes; its reader and its storescp serve the tests, too."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "captures"))
