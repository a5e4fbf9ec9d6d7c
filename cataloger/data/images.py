"""A picture's bytes → the square of pixels that a network reads. Never torch: this runs in the reading tasks."""

import functools
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cataloger.spec import Picture

Pixels = npt.NDArray[np.uint8]
# What became of a row's picture. UNREACHABLE: where it lies nobody answered. UNREAD: words were sure of the row without it.
OK, MISSING, BROKEN, TOO_LARGE = "ok", "missing", "broken", "too large"
UNREACHABLE, UNREAD = "unreachable", "unread"
STATUSES = (OK, MISSING, BROKEN, TOO_LARGE, UNREACHABLE, UNREAD)
MOST_BYTES = 32 << 20
# A picture of more is not decoded: a file of a few kilobytes may ask for gigabytes of memory.
MOST_PIXELS = 64_000_000
# What Pillow may take a file for, by its content and whatever its name: these have been tried (tests/data/test_images.py).
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF")
# What is kept for a training has so many times the pixels that are read, on a side: room to crop and to zoom.
SPARE = 1.75
KEPT_QUALITY = 92
THUMBNAIL, THUMBNAIL_QUALITY = 96, 75
WHITE = (255, 255, 255)
REDUCIBLE = ("RGB", "RGBA", "L", "LA", "CMYK")
# Values of 16 bits and more that are scaled at once.
SCALED = 1 << 20
ORIENTATION = 0x0112  # of the tags of EXIF


class Unreadable(Exception):
    """A picture that cannot be had; `status` says why."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


@dataclass(frozen=True)
class Window:
    """The part of a picture that is read, in shares of its width and height from its top left corner."""

    left: float
    top: float
    right: float
    bottom: float


def middle(width: int, height: int, crop: float) -> Window:
    """The square in the middle whose side is `crop` of the shorter side."""
    side = crop * min(width, height)
    across, down = side / width / 2, side / height / 2
    return Window(0.5 - across, 0.5 - down, 0.5 + across, 0.5 + down)


def decode(data: bytes, picture: Picture, window: Callable[[int, int], Window] | None = None) -> Pixels:
    """uint8 [3, size, size], red first: the square in the middle, or the `window` for a width and a height. Raises Unreadable."""
    with _opened(data, round(picture.size / picture.crop)) as image:
        seen = window(image.width, image.height) if window else middle(image.width, image.height, picture.crop)
        box = (
            seen.left * image.width,
            seen.top * image.height,
            seen.right * image.width,
            seen.bottom * image.height,
        )
        size = (picture.size, picture.size)
        read = image.resize(size, _filter(picture.resample), box=box, reducing_gap=2.0)
        return np.ascontiguousarray(np.asarray(read).transpose(2, 0, 1))


def shrunk(data: bytes, picture: Picture) -> bytes:
    """The same picture, no larger than a training has use for, after a look at all of it. Raises Unreadable."""
    from PIL import Image

    short = round(SPARE * picture.size)
    with _opened(data, short) as image:
        if min(image.size) <= short and len(data) <= 3 * short * short:
            return data
        share = min(1.0, short / min(image.size))
        smaller = image.resize(
            (max(1, round(share * image.width)), max(1, round(share * image.height))), Image.Resampling.BICUBIC
        )
        sink = io.BytesIO()
        try:
            smaller.save(sink, "JPEG", quality=KEPT_QUALITY)
        except (OSError, ValueError):  # longer than a JPEG can be
            return data
        return sink.getvalue()


def thumbnail(data: bytes) -> bytes:
    """The whole picture on a few pixels, as JPEG. Raises Unreadable."""
    with _opened(data, THUMBNAIL) as image:
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        sink = io.BytesIO()
        image.save(sink, "JPEG", quality=THUMBNAIL_QUALITY)
        return sink.getvalue()


def as_jpeg(pixels: Pixels) -> bytes:
    """Of uint8 [3, height, width], as `decode` gives them."""
    from PIL import Image

    sink = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(sink, "JPEG", quality=KEPT_QUALITY)
    return sink.getvalue()


@functools.cache
def _quiet() -> None:
    """Pillow warns of what is larger than it likes, where the limit here is ours, and of much else that is found out here. For good: a
    filter for a while would be one for all threads."""
    warnings.filterwarnings("ignore", module=r"PIL\.")


def _opened(data: bytes, short: int) -> Any:
    """A Pillow image in RGB, upright and on white, its shorter side at least `short` pixels where it has as many. Raises Unreadable."""
    from PIL import Image

    if len(data) > MOST_BYTES:
        raise Unreadable(TOO_LARGE)
    try:
        _quiet()
        image: Any = Image.open(io.BytesIO(data), formats=FORMATS)
        width, height = image.size
        if width * height > MOST_PIXELS:
            raise Unreadable(TOO_LARGE)
        if image.format == "JPEG" and image.mode in ("RGB", "L"):
            # libjpeg decodes to a half, a quarter or an eighth for next to nothing: what `draft` chooses is never below.
            share = max(1.0, min(width, height) / short)
            image.draft(image.mode, (int(width // share), int(height // share)))
        image.load()
        if (factor := min(image.size) // (2 * short)) > 1:
            # Before anything makes more copies of it: 64 megapixels are a quarter of a gibibyte.
            deep = image.mode.startswith(("I", "F"))
            if image.mode in ("P", "PA") or ("transparency" in image.info and not deep):
                image = image.convert("RGBA")
            image = image.reduce(factor) if image.mode in REDUCIBLE else image
        return _on_white(_upright(image))
    except (Unreadable, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise Unreadable(TOO_LARGE) from error
    except Exception as error:  # Pillow's decoders have one of their own for every way in which bytes can be wrong
        raise Unreadable(BROKEN) from error


def _upright(image: Any) -> Any:
    """Turned as its EXIF says, which may be nonsense."""
    from PIL import Image

    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:  # Pillow has many for EXIF that is damaged; the picture itself is not
        return image
    turns = Image.Transpose
    how = {
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_270,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_90,
    }.get(orientation)
    return image if how is None else image.transpose(how)


def _on_white(image: Any) -> Any:
    from PIL import Image

    if image.mode.startswith(("I", "F")):
        # 16 bits, or more: by their span, as nothing says what is white.
        values = np.asarray(image)
        most = 65_535.0 if image.mode.startswith("I") else max(1.0, float(values.max(initial=0)))
        scaled = np.empty(values.shape, np.uint8)
        strip = max(1, SCALED // values.shape[1])
        for row in range(0, len(values), strip):
            scaled[row : row + strip] = np.clip(values[row : row + strip] * (255.0 / most), 0, 255)
        return Image.fromarray(scaled).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        ground = Image.new("RGBA", layer.size, (*WHITE, 255))
        return Image.alpha_composite(ground, layer).convert("RGB")
    return image.convert("RGB")


def _filter(name: str) -> Any:
    from PIL import Image

    return {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}[name]
