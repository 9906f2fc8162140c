"""The backend half of ``dicomweb``: an archive that speaks QIDO-RS, WADO-RS and STOW-RS, as an ``Engine``."""
