"""The optional packages that make pictures and read compressed pixels (``harmonyd[dicomweb]``)."""

from __future__ import annotations

from importlib.util import find_spec

INSTALL = "pip install 'harmonyd[dicomweb]'"
"""In the environment that harmonyd runs in."""
_MODULES = {
    "numpy": "numpy",
    "pillow": "PIL",
    "pylibjpeg": "pylibjpeg",
    "pylibjpeg-openjpeg": "openjpeg",
    "pyjpegls": "jpeg_ls",
    "python-gdcm": "gdcm",
}


def lacking() -> list[str]:
    """The packages that are not installed."""
    return [package for package, module in _MODULES.items() if find_spec(module) is None]
