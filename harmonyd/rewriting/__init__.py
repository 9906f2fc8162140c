"""Makes other data sets of data sets: rules, pseudonyms, profiles of de-identification, files, queries."""
