"""The composition root: all parts are built from the configuration here, started in order and stopped in reverse."""
