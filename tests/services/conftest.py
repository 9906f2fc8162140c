"""Here so that the folders below find ``service_fakes``."""
