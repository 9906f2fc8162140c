"""What can go wrong in a DIMSE operation, one class a kind; each knows whose fault it is (see ``harmonyd.errors``)."""

from __future__ import annotations

from harmonyd.errors import BadRequest, DeadlinePassed, Fault, HarmonydError, RemoteError, StorageFull

__all__ = [
    "AssociationAborted",
    "AssociationRejected",
    "CertificateRefused",
    "DeadlinePassed",
    "DimseError",
    "DimseFailure",
    "DimseTimeout",
    "EngineFailed",
    "IdentifierError",
    "NoPresentationContext",
    "NonsenseAnswer",
    "OurCertificateRefused",
    "RemoteUnreachable",
    "StorageFull",
    "TlsFailed",
    "ToolMissing",
]


class DimseError(RemoteError):
    """Base of what the remote node, or the way to it, did."""

    associated = True
    """False where something broke off before there was an association."""


class IdentifierError(BadRequest):
    """A query key is unknown, malformed, missing or not allowed; ``extra['key']`` names it."""


class RemoteUnreachable(DimseError):
    """No TCP connection: refused, no route, unknown host."""

    title = "The remote node cannot be reached"


class TlsFailed(DimseError):
    """No secure connection, or none without TLS; ``extra['tls']`` says in a word why."""

    title = "There is no secure connection to the remote node"


class CertificateRefused(TlsFailed):
    """We do not trust the certificate of the node; ``extra['certificate_sha256']`` is its fingerprint."""

    title = "The remote node's certificate cannot be trusted"


class OurCertificateRefused(TlsFailed):
    """The node requires a certificate of ours, or another one."""

    title = "The remote node does not accept our certificate"


class AssociationRejected(DimseError):
    """A-ASSOCIATE-RJ (PS3.8 section 9.3.4); ``extra``: ``reject_result``, ``_source`` and ``_reason`` in words."""

    title = "The remote node rejected the association"


class NoPresentationContext(DimseError):
    """The association stands, but the node accepts no presentation context for this operation (PS3.8 section 9.3.3)."""

    title = "The remote node does not offer this service"


class AssociationAborted(DimseError):
    """A-ABORT, or the TCP connection dropped under way (PS3.8 section 9.3.8)."""

    title = "The remote node aborted the association"


class DimseFailure(DimseError):
    """A failure status in the answer (PS3.7 Annex C); ``extra``: ``dimse_status`` ("0xA700"), ``dimse_comment``."""

    title = "The remote node answered with a failure status"

    @classmethod
    def from_status(cls, operation: str, status: int, text: str, comment: str | None) -> DimseFailure:
        """Build the error from a status (16 bit), its meaning and the Error Comment (0000,0902) where there was one."""
        return cls(
            f"{operation} ended with status 0x{status:04X} ({text})",
            dimse_status=f"0x{status:04X}",
            dimse_status_text=text,
            dimse_comment=comment,
        )


class NonsenseAnswer(DimseError):
    """What came back is not DICOM, or not an answer to what was asked."""

    title = "The remote node sent nonsense"


class DimseTimeout(DeadlinePassed):
    """Connect, association or DIMSE silence lasted longer than configured; ``extra['timeout']`` says which."""

    title = "The remote node did not answer in time"


class EngineFailed(HarmonydError):
    """Our engine could not do its part: a tool that will not start, crashes, or says what we cannot read."""

    fault = Fault.OURS
    title = "The DIMSE engine failed"


class ToolMissing(EngineFailed):
    """A DCMTK program is not installed, is not DCMTK's, or is too old."""

    title = "DCMTK is missing or too old"
