"""harmonyd: a gateway daemon between HTTP and DICOM networks."""

__version__ = "0.1.0"
