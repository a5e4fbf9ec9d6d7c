"""Simple pictures of generated products: a form, its colour and its pattern are those of the category, all else is the product's."""

import io
from typing import Any

import numpy as np

SIDE = 96
FORMS = ("circle", "square", "triangle", "cross", "ring", "bar")
COLOURS = ((200, 40, 40), (40, 120, 200), (40, 160, 80), (230, 160, 30), (130, 60, 170), (90, 90, 90), (20, 170, 170))
PATTERNS = ("plain", "striped", "dotted")
# Of the pictures, as many are missing or cannot be read, as in every shop.
MISSING, BROKEN = 0.03, 0.01


def draw(category: int, seed: list[int]) -> bytes | None:
    """A JPEG, None where the product has no picture. Categories that differ look different, up to 126 of them."""
    from PIL import Image, ImageDraw

    rng = np.random.default_rng(seed)
    luck = rng.random()
    if luck < MISSING:
        return None
    ground = tuple(int(value) for value in rng.integers(205, 256, 3))
    image = Image.new("RGB", (SIDE, SIDE), ground)
    layer = Image.new("L", (SIDE, SIDE), 0)
    _form(ImageDraw.Draw(layer), FORMS[category % len(FORMS)], int(rng.integers(26, 40)))
    angle, (across, down) = float(rng.uniform(-20, 20)), rng.integers(-8, 9, 2).tolist()
    layer = layer.rotate(angle, translate=(across, down))
    base = np.array(COLOURS[category // len(FORMS) % len(COLOURS)])
    colour = tuple(int(value) for value in np.clip(base + rng.integers(-18, 19, 3), 0, 255))
    filled = Image.new("RGB", (SIDE, SIDE), colour)
    _pattern(ImageDraw.Draw(filled), PATTERNS[category // (len(FORMS) * len(COLOURS)) % len(PATTERNS)], ground)
    image.paste(filled, mask=layer)
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=85)
    data = sink.getvalue()
    return data[: len(data) // 2] if luck < MISSING + BROKEN else data


def _form(pen: Any, form: str, radius: int) -> None:
    near, far, middle = SIDE // 2 - radius, SIDE // 2 + radius, SIDE // 2
    if form == "circle":
        pen.ellipse((near, near, far, far), fill=255)
    elif form == "square":
        pen.rectangle((near, near, far, far), fill=255)
    elif form == "triangle":
        pen.polygon(((middle, near), (far, far), (near, far)), fill=255)
    elif form == "cross":
        third = radius // 3
        pen.rectangle((middle - third, near, middle + third, far), fill=255)
        pen.rectangle((near, middle - third, far, middle + third), fill=255)
    elif form == "ring":
        pen.ellipse((near, near, far, far), outline=255, width=max(4, radius // 3))
    else:
        pen.rectangle((near, middle - radius // 3, far, middle + radius // 3), fill=255)


def _pattern(pen: Any, pattern: str, ground: tuple[int, ...]) -> None:
    if pattern == "striped":
        for at in range(0, SIDE, 12):
            pen.rectangle((0, at, SIDE, at + 4), fill=ground)
    elif pattern == "dotted":
        for down in range(0, SIDE, 14):
            for across in range(0, SIDE, 14):
                pen.ellipse((across, down, across + 6, down + 6), fill=ground)
