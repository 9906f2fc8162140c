"""What was retrieved for DICOMweb clients, kept on disk for the next who asks; decision 0017."""
