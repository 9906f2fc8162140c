"""What the handlers of single resources get."""

from __future__ import annotations

from dataclasses import dataclass, field

from harmonyd.config.model import DicomwebEndpointOptions
from harmonyd.services.base import HttpRequest
from harmonyd.services.dicomweb.asking import Asker
from harmonyd.services.dicomweb.codec_pool import Codecs
from harmonyd.services.dicomweb.counted import Counted
from harmonyd.services.dicomweb.images import Images
from harmonyd.services.dicomweb.resources import Resource


@dataclass(frozen=True, slots=True)
class Exchange:
    """One request on its way to an answer."""

    request: HttpRequest
    resource: Resource
    asker: Asker
    options: DicomwebEndpointOptions
    base_url: str
    """What stands before ``/studies`` in the URLs of the answer."""
    counted: Counted
    codecs: Codecs
    images: Images = field(default_factory=Images)
