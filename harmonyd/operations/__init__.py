"""Requests that are answered later (RFC 7240 ``respond-async``): the same request, its answer written to a file."""
