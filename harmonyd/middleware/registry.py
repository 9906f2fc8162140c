"""Which middleware types there are. A new one is one module and one line here."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from harmonyd.config.model import MiddlewareConfig
from harmonyd.errors import HarmonydError
from harmonyd.middleware.base import Middleware
from harmonyd.middleware.json_extractor import JsonExtractor
from harmonyd.middleware.metadata import Metadata
from harmonyd.middleware.metadata_transform import MetadataTransform
from harmonyd.middleware.passthru import Passthru
from harmonyd.middleware.path_filter import PathFilter
from harmonyd.middleware.route import Route
from harmonyd.middleware.transform import Transform

MIDDLEWARE_TYPES: Mapping[str, Callable[[MiddlewareConfig], Middleware]] = {
    "passthru": lambda config: Passthru(config.name),
    **dict.fromkeys(("dicomweb_bridge", "dicomweb"), lambda config: Passthru(config.name)),  # see config.dicomweb
    "path_filter": lambda config: PathFilter(config.name, config.options["rules"]),
    **dict.fromkeys(("json_extractor", "json"), lambda config: JsonExtractor(config.name)),
    "transform": lambda config: Transform(config.name, config.options),
    "metadata_transform": lambda config: MetadataTransform(config.name, config.options),
    "metadata": lambda config: Metadata(config.name, config.options),
    "route": lambda config: Route(config.name, config.options["rules"], config.options["otherwise"]),
}


def build(config: MiddlewareConfig) -> Middleware:
    """Build a middleware from its validated configuration; raises ``HarmonydError`` for a type that is not built in."""
    factory = MIDDLEWARE_TYPES.get(config.type)
    if factory is None:
        raise HarmonydError(
            f"Middleware {config.name} has the unknown type {config.type!r}",
            hint=f"The types are: {', '.join(MIDDLEWARE_TYPES)}",
        )
    return factory(config)
