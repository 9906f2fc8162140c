"""Storage Commitment (PS3.4 Annex J): what was asked of us, and what we have asked, on the disk."""
