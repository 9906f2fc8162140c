"""The ``dicom`` service: as a backend a client of remote nodes (SCU), as an endpoint a receiver of objects (SCP)."""
