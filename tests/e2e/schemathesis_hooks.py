"""For schemathesis: how bodies are sent that are no JSON. It imports this by the name in SCHEMATHESIS_HOOKS."""

from __future__ import annotations

from typing import Any

import schemathesis


@schemathesis.serializer("application/dicom", 'multipart/related; type="application/dicom"')
def as_bytes(ctx: schemathesis.SerializationContext, value: Any) -> bytes:
    """Whatever was made up, as bytes: never an object, so that each has to be refused well."""
    return value if isinstance(value, bytes) else str(value).encode()
