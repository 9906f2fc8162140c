"""``harmonyd doctor``: where the way to a PACS, and back, is broken; which side has to change what."""

from harmonyd.doctor.command import doctor

__all__ = ["doctor"]
