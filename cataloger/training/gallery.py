"""The pictures of a training: kept on the node's disk as they are compressed, decoded when a step is about to need them.

A picture changes from epoch to epoch, so that few of them teach more. How is a function of seed, epoch and row: after a crash,
and with any number of workers, the same pictures are seen.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from cataloger.config import Augmentation
from cataloger.data.album import Pictured
from cataloger.data.batching import IntArray, Tokens
from cataloger.data.images import OK, Pixels, Window, decode
from cataloger.data.pictures import PictureInput
from cataloger.data.tagging import TagInput
from cataloger.infra.node_cache import once_per_node
from cataloger.spec import Picture
from cataloger.training.archive import KEPT_SECONDS

FILE = "pictures.arrow"
# Of the rows that have both, so many learn from one alone: at night, some have no picture and some no text.
LEFT_OUT = 0.1
SPECIAL = 2  # tokens of a text that is empty
# An area of this share of the picture at least, and sides that differ by a third at most (Szegedy et al. 2015; timm's are .08).
LEAST_AREA = {"light": 0.5, "strong": 0.25}
RATIO = 4 / 3
# Of `strong`: brightness, contrast and colour between these, and one row in four loses a rectangle (Zhong et al. 2020).
COLOURS, ERASED, ERASED_AREA = (0.7, 1.3), 0.25, (0.02, 0.2)


@dataclass(frozen=True)
class Gallery:
    """K compressed pictures in a file that all processes of the node map into memory."""

    file: Path
    picture: Picture
    change: Callable[[bytes, Picture, int], Pixels] | None = None

    @property
    def alike(self) -> bool:
        return self.change is None

    def pixels(self, chosen: IntArray, rows: IntArray) -> Pixels:
        """uint8 [n, 3, size, size] of these pictures, as pictures of these rows."""
        column = _contents(self.file)

        def one(pair: tuple[int, int]) -> Pixels:
            data = column[pair[0]].as_py()
            return self.change(data, self.picture, pair[1]) if self.change else decode(data, self.picture)

        with ThreadPoolExecutor(2) as pool:
            return np.stack(list(pool.map(one, zip(chosen.tolist(), rows.tolist(), strict=True))))


@lru_cache(maxsize=4)
def _opened(file: Path) -> pa.Table:
    """Mapped once: what is mapped stays, even if somebody removes the file."""
    return pa.ipc.open_file(pa.memory_map(str(file))).read_all()


def _contents(file: Path) -> pa.ChunkedArray:
    return _opened(file).column("bytes")


def kept_for_training(given: Any, values: pa.Array) -> pa.Table:
    """What the ingest keeps of values without nulls: tokens, and pictures as they are compressed."""
    if isinstance(given, TagInput):
        return given.encode(values).without_texts().to_arrow()
    return given.kept(values) if isinstance(given, PictureInput) else given.encode(values).to_arrow()


def with_pictures_of(encoded: pa.Table, kept: pa.Table) -> pa.Table:
    """Some of the encoded rows, each picture's bytes in the first of these that has it."""
    rows = zip(encoded.column("picture").to_pylist(), encoded.column("bytes").to_pylist(), strict=True)
    contents = {version: data for version, data in rows if data is not None}
    data = pa.array([contents.pop(version, None) for version in kept.column("picture").to_pylist()], pa.large_binary())
    return kept.set_column(kept.column_names.index("bytes"), "bytes", data)


def load_pictured(blocks: Sequence[Any], key: str, table: pa.Table, given: PictureInput) -> Pictured:
    """The rows of the ingest's tables, which `table` has without their pictures; `key` is that of the training."""
    folder = once_per_node("pictures", key, lambda aside: _write(blocks, aside / FILE), KEPT_SECONDS)
    versions = _opened(folder / FILE).column("picture").combine_chunks()
    found = pa.compute.index_in(table.column("picture").combine_chunks(), versions)
    index = pa.compute.fill_null(found, -1).to_numpy().astype(np.int64)
    tokens = given.words.from_arrow(table) if given.words else None
    # A row that has nothing else was kept for its picture.
    status = pa.repeat(pa.scalar(OK), len(index))
    return Pictured(tokens, index, status, Gallery(folder / FILE, given.picture), given.picture.size)


def _write(blocks: Sequence[Any], file: Path) -> None:
    """One of the ingest's tables after the other, each picture once."""
    schema = pa.schema([("picture", pa.string()), ("bytes", pa.large_binary())])
    known: set[str] = set()
    with pa.ipc.new_file(str(file), schema) as writer:
        for block in blocks:
            table = ray.get(block).select(schema.names).combine_chunks()
            table = table.filter(table.column("bytes").is_valid())
            new = [version not in known and not known.add(version) for version in table.column("picture").to_pylist()]  # type: ignore[func-returns-value]
            writer.write_table(table.filter(pa.array(new, pa.bool_())).cast(schema))


def vary(rows: Pictured, augmentation: Augmentation, rng: np.random.Generator) -> Pictured:
    """The rows as one epoch sees them: some without their text or without their picture, pictures altered."""
    index, tokens = rows.index, rows.tokens
    if tokens is not None:
        chance, has = rng.random(len(rows)), rows.index >= 0
        index = np.where((chance < LEFT_OUT) & (tokens.lengths > SPECIAL), -1, index)
        tokens = _emptied(tokens, has & (chance >= LEFT_OUT) & (chance < 2 * LEFT_OUT))
    album, seed = rows.album, int(rng.integers(1 << 62))
    if augmentation != "off":
        strong = augmentation == "strong"
        album = replace(album, change=lambda data, picture, row: altered(data, picture, [seed, row], strong))
    return replace(rows, index=index, tokens=tokens, album=album)


def _emptied(tokens: Tokens, rows: Any) -> Tokens:
    """With the first and the last token alone in these rows: what the tokenizer makes of no text at all."""
    place = np.arange(len(tokens.flat)) - np.repeat(tokens.offsets[:-1], tokens.lengths)
    last = np.repeat(tokens.lengths, tokens.lengths) - 1
    kept = ~np.repeat(rows, tokens.lengths) | (place == 0) | (place == last)
    lengths = np.bincount(np.repeat(np.arange(len(tokens)), tokens.lengths)[kept], minlength=len(tokens))
    return replace(tokens, flat=tokens.flat[kept], offsets=np.concatenate([[0], np.cumsum(lengths)]))


def altered(data: bytes, picture: Picture, seeds: list[int], strong: bool) -> Pixels:
    """A random part of a picture, maybe mirrored; `strong` changes its colours and takes a piece out as well."""
    rng = np.random.default_rng(seeds)
    least = LEAST_AREA["strong" if strong else "light"]
    pixels = decode(data, picture, lambda width, height: _window(width, height, rng, least))
    if rng.random() < 0.5:
        pixels = pixels[:, :, ::-1]
    if strong:
        pixels = _erased(_coloured(pixels, rng), rng)
    same: Pixels = np.ascontiguousarray(pixels)
    return same


def _window(width: int, height: int, rng: np.random.Generator, least: float) -> Window:
    """Of a random area and form, anywhere in the picture."""
    area = rng.uniform(least, 1.0)
    ratio = np.exp(rng.uniform(-np.log(RATIO), np.log(RATIO)))
    side = np.sqrt(area) * min(width, height)
    across, down = min(1.0, side * np.sqrt(ratio) / width), min(1.0, side / np.sqrt(ratio) / height)
    left, top = rng.uniform(0, 1 - across), rng.uniform(0, 1 - down)
    return Window(left, top, left + across, top + down)


def _coloured(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    brightness, contrast, colour = rng.uniform(*COLOURS, 3)
    values = pixels.astype(np.float32) * brightness
    values = (values - values.mean()) * contrast + values.mean()
    grey = values.mean(axis=0)
    coloured: Pixels = np.clip((values - grey) * colour + grey, 0, 255).astype(np.uint8)
    return coloured


def _erased(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    if rng.random() < ERASED:
        _, height, width = pixels.shape
        side = np.sqrt(rng.uniform(*ERASED_AREA))
        ratio = np.exp(rng.uniform(-np.log(2), np.log(2)) / 2)
        down, across = (
            max(1, int(size * min(1.0, share))) for size, share in ((height, side * ratio), (width, side / ratio))
        )
        top, left = (int(rng.integers(size - part + 1)) for size, part in ((height, down), (width, across)))
        pixels = pixels.copy()
        pixels[:, top : top + down, left : left + across] = rng.integers(0, 256, (3, down, across), np.uint8)
    return pixels
