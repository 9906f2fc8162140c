"""A frame as a picture: modality and VOI transformations, window, viewport (PS3.18 section 10.4.1.1.3). It blocks.

Needs numpy and Pillow (``harmonyd[dicomweb]``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from io import BytesIO
from typing import Any

from pydicom import Dataset

from harmonyd.errors import BadRequest, NotAcceptable
from harmonyd.services.dicomweb.codecs import INSTALL
from harmonyd.services.dicomweb.pixel_file import PixelFile, judged

JPEG, PNG = "image/jpeg", "image/png"
THUMBNAIL_PIXELS = 128
_MAX_PIXELS = 8192
"""Longest side of a viewport."""
_QUALITY = 90
_FUNCTIONS = ("linear", "linear-exact", "sigmoid")
_NOT_SUPPORTED = ("annotation", "iccprofile", "presentationSeriesUID", "presentationUID")


@dataclass(frozen=True, slots=True)
class Rendering:
    """How a frame is to look."""

    window: tuple[float, float, str] | None = None
    """Centre, width, function (PS3.3 section C.11.2.1)."""
    size: tuple[int, int] | None = None
    """Width and height that the picture has to fit into."""
    region: tuple[float, float, float, float] | None = None
    """Left, top, width and height of the part of the image that is shown; a negative size mirrors."""
    quality: int = _QUALITY


def parse_rendering(query: Mapping[str, list[str]], *, thumbnail: bool) -> tuple[Rendering, list[str]]:
    """Read the query parameters of PS3.18 section 8.3.5; the texts are warnings. Raises ``BadRequest``."""
    window = None if thumbnail else _window(query)
    size, region = _viewport(query)
    if thumbnail and size is None:
        size = (THUMBNAIL_PIXELS, THUMBNAIL_PIXELS)
    warnings = [f"The {name} parameter is not supported." for name in _NOT_SUPPORTED if name in query]
    return Rendering(window, size, region, _quality(query)), warnings


def _fields(query: Mapping[str, list[str]], name: str) -> list[str] | None:
    values = query.get(name)
    return None if values is None else ",".join(values).split(",")


def _numbers(name: str, fields: list[str]) -> list[float]:
    try:
        numbers = [float(field) for field in fields]
    except ValueError:
        raise BadRequest(f"{name} has something that is no number.", key=name) from None
    if not all(abs(number) < 1e9 for number in numbers):
        raise BadRequest(f"{name} has a number that is out of range.", key=name)
    return numbers


def _window(query: Mapping[str, list[str]]) -> tuple[float, float, str] | None:
    fields = _fields(query, "window")
    if fields is None:
        return None
    function = fields[2].lower() if len(fields) == 3 else _FUNCTIONS[0]
    if len(fields) not in (2, 3) or function not in _FUNCTIONS:
        raise BadRequest("window is center,width,function.", key="window", hint=f"Functions: {', '.join(_FUNCTIONS)}.")
    center, width = _numbers("window", fields[:2])
    if width < 1 and (function == "linear" or width <= 0):
        raise BadRequest("The width of a window is at least 1.", key="window")
    return center, width, function


def _viewport(
    query: Mapping[str, list[str]],
) -> tuple[tuple[int, int] | None, tuple[float, float, float, float] | None]:
    fields = _fields(query, "viewport")
    if fields is None:
        return None, None
    if len(fields) not in (2, 6):
        raise BadRequest("viewport is vw,vh or vw,vh,sx,sy,sw,sh.", key="viewport")
    # Of the last four each may be left out (PS3.18 section 8.3.5.1.3).
    numbers = _numbers("viewport", [field or "0" for field in fields])
    width, height = (int(number) for number in numbers[:2])
    if not (1 <= width <= _MAX_PIXELS and 1 <= height <= _MAX_PIXELS):
        raise BadRequest(f"A viewport is 1 to {_MAX_PIXELS} pixels wide and high.", key="viewport")
    region = (numbers[2], numbers[3], numbers[4], numbers[5]) if len(fields) == 6 else None
    return (width, height), region


def _quality(query: Mapping[str, list[str]]) -> int:
    fields = _fields(query, "quality")
    if fields is None:
        return _QUALITY
    if len(fields) != 1 or not fields[0].isdecimal() or not 1 <= int(fields[0][:4]) <= 100:
        raise BadRequest("quality is a number from 1 to 100.", key="quality")
    return int(fields[0])


def render(image: PixelFile, frame: int, media_type: str, how: Rendering) -> bytes:
    """Return a frame as JPEG or PNG. Raises ``NotAcceptable`` for what cannot be decoded or shown."""
    if find_spec("numpy") is None or find_spec("PIL") is None:
        raise NotAcceptable(
            "Pictures cannot be made here.", hint=f"Whoever runs harmonyd has to install the codecs: {INSTALL}"
        )
    from PIL import Image

    pixels = image.pixels(frame)
    with judged():
        picture = _framed(Image.fromarray(_displayed(image.ds, pixels, how)), how)
    out = BytesIO()
    if media_type == JPEG:
        picture.save(out, "JPEG", quality=how.quality)
    else:
        picture.save(out, "PNG")
    return out.getvalue()


def _displayed(ds: Dataset, pixels: Any, how: Rendering) -> Any:
    """Grey values or RGB of 8 bits."""
    import numpy as np
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

    photometric = ds.get("PhotometricInterpretation", "")
    if photometric == "PALETTE COLOR" and pixels.ndim == 2:
        pixels = apply_color_lut(pixels, ds)
    if pixels.ndim == 3:
        return pixels if pixels.dtype == np.uint8 else _eight_bits(pixels, ds)
    grey = _windowed(apply_modality_lut(pixels, ds).astype(np.float64), ds, how)
    if photometric == "MONOCHROME1":
        grey = 1.0 - grey
    return (grey * 255.0 + 0.5).astype(np.uint8)


def _eight_bits(pixels: Any, ds: Dataset) -> Any:
    """Colours of more bits, the highest eight of them: all that are stored count, or those of the palette."""
    import numpy as np

    bits = 16 if ds.get("PhotometricInterpretation") == "PALETTE COLOR" else int(ds.get("BitsStored") or 16)
    return (pixels.astype(np.uint32) >> max(0, bits - 8)).clip(0, 255).astype(np.uint8)


def _windowed(values: Any, ds: Dataset, how: Rendering) -> Any:
    """Values from 0 to 1: by the window that was asked for, else the first of the image, else from least to most."""
    import numpy as np

    window = how.window or _own_window(ds)
    if window is None:
        low, high = float(values.min()), float(values.max())
        return (values - low) / (high - low) if high > low else np.zeros_like(values)
    center, width, function = window
    if function == "sigmoid":
        return 1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - center) / width, -700.0, 700.0)))
    if function == "linear-exact":
        return ((values - center) / width + 0.5).clip(0.0, 1.0)
    if width <= 1:
        return (values > center - 0.5).astype(np.float64)
    return ((values - (center - 0.5)) / (width - 1) + 0.5).clip(0.0, 1.0)


def _own_window(ds: Dataset) -> tuple[float, float, str] | None:
    center, width = _first(ds.get("WindowCenter")), _first(ds.get("WindowWidth"))
    if center is None or width is None or width < 1:
        return None
    function = str(ds.get("VOILUTFunction") or "LINEAR").lower().replace("_", "-")
    return center, width, function if function in _FUNCTIONS else _FUNCTIONS[0]


def _first(value: Any) -> float | None:
    if value is None or value == "":
        return None
    return float(value if isinstance(value, int | float) else next(iter(value), 0.0))


def _framed(picture: Any, how: Rendering) -> Any:
    """The region, mirrored where its size is negative, in the viewport: as large as it fits, with its proportions."""
    from PIL import Image, ImageOps

    if how.region is not None:
        left, top, width, height = how.region
        width, height = width or picture.width - left, height or picture.height - top
        box = (round(left), round(top), round(left + abs(width)), round(top + abs(height)))
        if box[2] <= box[0] or box[3] <= box[1] or not (0 <= box[0] < picture.width and 0 <= box[1] < picture.height):
            raise BadRequest("The viewport shows nothing of the image.", key="viewport")
        picture = picture.crop((box[0], box[1], min(box[2], picture.width), min(box[3], picture.height)))
        picture = ImageOps.mirror(picture) if width < 0 else picture
        picture = ImageOps.flip(picture) if height < 0 else picture
    if how.size is None:
        return picture
    scale = min(how.size[0] / picture.width, how.size[1] / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.BILINEAR)
