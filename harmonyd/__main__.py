"""``python -m harmonyd``."""

from __future__ import annotations

import sys

from harmonyd.cli import main

sys.exit(main())
