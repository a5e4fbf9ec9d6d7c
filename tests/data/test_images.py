"""What Pillow makes of files as shops have them, and what is refused."""

import contextlib
import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cataloger.data.images import (
    BROKEN,
    KEPT_QUALITY,
    MOST_BYTES,
    SPARE,
    TOO_LARGE,
    Unreadable,
    decode,
    shrunk,
)
from cataloger.spec import Picture
from drawn import BLUE, GREEN, RED, canvas, encoded, jpeg

WHOLE = Picture("image", 32, crop=1.0)


def colours(data: bytes, picture: Picture = WHOLE) -> dict[str, tuple[int, ...]]:
    """The colour in the middle of each quarter."""
    pixels, quarter = decode(data, picture), picture.size // 4
    assert pixels.shape == (3, picture.size, picture.size)
    assert pixels.dtype == np.uint8
    far = picture.size - quarter
    places = {
        "top left": (quarter, quarter),
        "top right": (quarter, far),
        "bottom left": (far, quarter),
        "bottom right": (far, far),
    }
    return {name: tuple(int(value) for value in pixels[:, row, column]) for name, (row, column) in places.items()}


def near(found: tuple[int, ...], wanted: tuple[int, ...], by: int = 14) -> bool:
    return max(abs(a - b) for a, b in zip(found, wanted, strict=True)) <= by


def is_the_canvas(data: bytes) -> bool:
    found = colours(data)
    return near(found.pop("top left"), BLUE) and all(near(colour, RED) for colour in found.values())


def palette() -> Any:
    return canvas().convert("P", palette=Image.Palette.ADAPTIVE)


def sixteen_bits() -> bytes:
    values = np.full((64, 64), 60_000, np.uint16)
    values[:32, :32] = 5_000
    return encoded(Image.fromarray(values), "PNG")


@pytest.mark.parametrize(
    "data",
    [
        jpeg(),
        encoded(canvas(), progressive=True),
        encoded(canvas(), "PNG"),
        encoded(palette(), "PNG"),
        encoded(palette(), "GIF"),
        encoded(canvas(), "WEBP", lossless=True),
        encoded(canvas(), "BMP"),
        encoded(canvas(), "TIFF"),
        encoded(canvas().convert("CMYK"), "JPEG"),
        encoded(canvas(size=(640, 640))),
        encoded(canvas().convert("RGBA"), "PNG"),
    ],
    ids=["JPEG", "progressive", "PNG", "palette", "GIF", "WebP", "BMP", "TIFF", "CMYK", "large JPEG", "RGBA"],
)
def test_all_formats_look_alike(data: bytes) -> None:
    assert is_the_canvas(data)


def test_a_photograph_stands_upright() -> None:
    turned = canvas().transpose(Image.Transpose.ROTATE_90)  # the corner is at the bottom left now
    assert near(colours(encoded(turned))["bottom left"], BLUE)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it clockwise to see it
    assert is_the_canvas(encoded(turned, exif=exif))


def test_every_orientation_is_turned_back() -> None:
    from PIL import ImageOps

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        data = encoded(image, "PNG", exif=exif)
        with Image.open(io.BytesIO(data)) as opened:
            upright = encoded(ImageOps.exif_transpose(opened), "PNG")
        assert (decode(data, WHOLE) == decode(upright, WHOLE)).all()


def test_damaged_exif_costs_no_picture() -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Camera"
    data = bytearray(encoded(canvas(), exif=exif))
    place = data.index(b"Exif") + 6
    for at in range(place, place + len(exif.tobytes()) - 8):
        damaged = bytes(data[:at] + b"\xff\xff" + data[at + 2 :])
        assert decode(damaged, WHOLE).shape == (3, 32, 32)


def test_what_is_transparent_is_white() -> None:
    layer = canvas().convert("RGBA")
    layer.putalpha(Image.new("L", layer.size, 0))
    assert near(colours(encoded(layer, "PNG"))["top left"], (255, 255, 255))
    see_through = palette()
    assert near(
        colours(encoded(see_through, "GIF", transparency=see_through.getpixel((0, 0))))["top left"], (255, 255, 255)
    )


def test_sixteen_bits_keep_their_order() -> None:
    found = colours(sixteen_bits())
    assert near(found["top left"], (19, 19, 19))
    assert near(found["bottom right"], (233, 233, 233))


def test_grey_has_three_colours() -> None:
    assert near(colours(encoded(canvas().convert("L")))["bottom right"], (87, 87, 87))


def test_one_pixel_fills_the_square() -> None:
    assert near(colours(encoded(Image.new("RGB", (1, 1), GREEN), "PNG"))["bottom right"], GREEN)


def test_the_middle_is_read() -> None:
    wide = Image.new("RGB", (300, 100), RED)
    wide.paste(GREEN, (100, 0, 200, 100))
    assert all(near(colour, GREEN) for colour in colours(encoded(wide)).values())
    framed = Image.new("RGB", (100, 100), RED)
    framed.paste(GREEN, (10, 10, 90, 90))
    assert np.abs(decode(encoded(framed), Picture("image", 32, crop=0.7)) - np.array(GREEN)[:, None, None]).max() < 40


def png_of(width: int, height: int) -> bytes:
    """A file of some bytes that says it has so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (jpeg()[:-200], BROKEN),
        (encoded(canvas(), "PNG")[:-40], BROKEN),
        (b"<!DOCTYPE html><html><body>404</body></html>", BROKEN),
        (b"", BROKEN),
        (b"\xff\xd8\xff", BROKEN),
        (encoded(canvas(), "PPM"), BROKEN),
        (png_of(10_000, 10_000), TOO_LARGE),
        (png_of(200_000, 200_000), TOO_LARGE),
        (bytes(MOST_BYTES + 1), TOO_LARGE),
    ],
    ids=[
        "cut JPEG",
        "cut PNG",
        "HTML",
        "nothing",
        "a beginning",
        "another format",
        "100 megapixels",
        "a bomb",
        "bytes",
    ],
)
def test_what_cannot_be_read_says_why(data: bytes, status: str) -> None:
    for use in (lambda: decode(data, WHOLE), lambda: shrunk(data, WHOLE)):
        with pytest.raises(Unreadable) as problem:
            use()
        assert problem.value.status == status


def test_random_bytes_are_broken_and_no_error() -> None:
    rng, whole = np.random.default_rng(0), encoded(canvas(), "PNG")
    for form in (jpeg(), whole, encoded(palette(), "GIF"), encoded(canvas(), "WEBP"), encoded(canvas(), "TIFF")):
        for _ in range(60):
            data = bytearray(form)
            for place in rng.integers(0, len(data), 12):
                data[place] = rng.integers(256)
            with contextlib.suppress(Unreadable):
                assert decode(bytes(data), WHOLE).shape == (3, 32, 32)


def test_what_training_keeps_is_small_and_the_same() -> None:
    data = jpeg()
    assert shrunk(data, Picture("image", 224)) is data
    large = encoded(canvas(size=(2_000, 1_500)))
    kept = shrunk(large, WHOLE)
    with Image.open(io.BytesIO(kept)) as image:
        assert min(image.size) == round(SPARE * WHOLE.size)
    assert KEPT_QUALITY >= 90
    assert np.abs(decode(kept, WHOLE).astype(int) - decode(large, WHOLE).astype(int)).mean() < 4


def test_a_very_long_picture_is_kept_as_it_is() -> None:
    data = encoded(Image.new("RGB", (100, 70_000), RED), "PNG")
    assert shrunk(data, Picture("image", 8)) == data or len(shrunk(data, Picture("image", 8))) < len(data)
    assert decode(shrunk(data, Picture("image", 64)), WHOLE).shape == (3, 32, 32)


def test_large_pictures_are_made_small_before_they_are_copied() -> None:
    large = canvas(size=(3_000, 2_000)).convert("RGBA")
    assert is_the_canvas(encoded(large, "PNG", compress_level=1))
