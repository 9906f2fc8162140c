"""The composition root: everything is built from the configuration and wired here, started in order and stopped in reverse."""
