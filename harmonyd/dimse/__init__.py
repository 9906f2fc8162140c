"""The DIMSE vocabulary and the ``Engine`` interface; ``dcmtk`` is its first implementation."""
