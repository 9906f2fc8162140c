"""``dicomweb``: a DICOMweb server (PS3.18) over a dicom backend. Its requests become find, get or move, and store."""
