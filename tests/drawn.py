"""Pictures for tests: plain squares with a corner of another colour, as files of any format."""

import io
from typing import Any

import numpy as np
from PIL import Image

RED, GREEN, BLUE, GREY = (220, 30, 30), (30, 180, 60), (40, 60, 220), (128, 128, 128)
THINGS, COLOURS = ("shirt", "cup", "lamp"), {"Red": RED, "Green": GREEN, "Blue": BLUE}


def canvas(
    colour: tuple[int, int, int] = RED, corner: tuple[int, int, int] = BLUE, size: tuple[int, int] = (64, 64)
) -> Any:
    """`corner` is the colour of the top left quarter."""
    image = Image.new("RGB", size, colour)
    image.paste(corner, (0, 0, size[0] // 2, size[1] // 2))
    return image


def encoded(image: Any, form: str = "JPEG", **options: Any) -> bytes:
    sink = io.BytesIO()
    image.save(sink, form, **{**({"quality": 95} if form == "JPEG" else {}), **options})
    return sink.getvalue()


def jpeg(
    colour: tuple[int, int, int] = RED, corner: tuple[int, int, int] = BLUE, size: tuple[int, int] = (64, 64)
) -> bytes:
    return encoded(canvas(colour, corner, size))


def noise(seed: int, size: int = 48) -> bytes:
    """A picture like no other."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)
    return encoded(Image.fromarray(pixels))


def shop(rows: int, seed: int) -> dict[str, list[Any]]:
    """Titles that name the thing, pictures of its colour."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[Any]] = {"id": [], "title": [], "image": [], "category_path": []}
    for row in range(rows):
        thing, name = THINGS[rng.integers(3)], list(COLOURS)[rng.integers(3)]
        colour = tuple(int(np.clip(value + rng.integers(-20, 20), 0, 255)) for value in COLOURS[name])
        found["id"].append(f"P{seed}-{row}")
        found["title"].append(f"{thing} number {rng.integers(10_000)}")
        found["image"].append(jpeg(colour, GREY, (40, 40)))  # type: ignore[arg-type]
        found["category_path"].append(f"{thing.title()} > {name}")
    return found
