"""The native DIMSE engine: ``core`` is the protocol without I/O."""
