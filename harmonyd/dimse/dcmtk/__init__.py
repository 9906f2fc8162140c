"""The DIMSE engine that drives DCMTK programs: find them, build argv, run them, read what they say.

DCMTK's exit codes and output say less than they seem to (a failed C-FIND exits 0); ``log`` and ``verdict`` are where
what they really mean is decided.
"""
