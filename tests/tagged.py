"""Products with tags of words in their texts, with a category and seasons beside them."""

from typing import Any

import numpy as np
import pyarrow as pa

COLOURS, KINDS = ("red", "dark blue", "green", "black"), ("shoe", "lamp", "cup", "chair", "drill")
BRANDS = ("Acme", "Bolt", "Nord", "Kite")
STRETCHES = pa.list_(
    pa.struct([("field", pa.string()), ("start", pa.int64()), ("end", pa.int64()), ("name", pa.string())])
)
VALUES = pa.list_(pa.struct([("name", pa.string()), ("value", pa.string())]))


def products(rows: int, seed: int = 0) -> dict[str, list[Any]]:
    """Titles and descriptions with a colour and a brand in them, and the tags of both; white space of all kinds."""
    rng = np.random.default_rng(seed)
    found: dict[str, list[Any]] = {name: [] for name in ("id", "title", "description", "tags", "attributes")}
    for row in range(rows):
        colour, kind, brand = (rng.choice(words) for words in (COLOURS, KINDS, BRANDS))
        space = rng.choice([" ", "  ", "\t"])
        title = f"{kind},{space}{colour.replace(' ', space)} no. {row}"
        about = f"{space}the {kind} that lasts for many years and was made with love{space}by {brand} of Porto"
        start = title.index(colour[:3], len(kind))
        tags = [
            ("title", start, start + len(colour) + (len(space) - 1) * colour.count(" "), "Colour"),
            ("description", about.index(brand), about.index(brand) + len(brand), "Brand"),
        ]
        found["id"].append(row)
        found["title"].append(title)
        found["description"].append(about)
        found["tags"].append([dict(zip(("field", "start", "end", "name"), tag, strict=True)) for tag in tags])
        texts = {"title": title, "description": about}
        found["attributes"].append([{"name": n, "value": texts[f][a:b]} for f, a, b, n in tags])
    return found


def table(rows: int, seed: int = 0) -> pa.Table:
    return pa.table(
        products(rows, seed),
        pa.schema(
            [
                ("id", pa.int64()),
                ("title", pa.string()),
                ("description", pa.string()),
                ("tags", STRETCHES),
                ("attributes", VALUES),
            ]
        ),
    )


def shop(rows: int, seed: int = 0) -> pa.Table:
    """The products with a category and seasons; lamps have no colour, and some answers are not told."""
    found = table(rows, seed).drop_columns(["attributes"])
    titles, rng = found.column("title").to_pylist(), np.random.default_rng(seed)
    kinds = [title.split(",")[0] for title in titles]
    paths = [f"{'Wear' if kind == 'shoe' else 'Home'} > {kind}" for kind in kinds]
    seasons = [["summer"] * ("red" in title) + ["winter"] * ("blue" in title or "red" in title) for title in titles]
    tags = [
        [tag for tag in own if kind != "lamp" or tag["name"] != "Colour"]
        for kind, own in zip(kinds, found.column("tags").to_pylist(), strict=True)
    ]
    told = rng.random((3, rows)) > 0.1
    columns: dict[str, Any] = {
        "category_path": pa.array(paths, mask=~told[0]),
        "seasons": pa.array([own or None for own in seasons], pa.list_(pa.string()), mask=~told[1]),
        "tags": pa.array(tags, found.schema.field("tags").type, mask=~told[2]),
    }
    for name, column in columns.items():
        found = found.drop_columns([name]) if name in found.column_names else found
        found = found.append_column(name, column)
    return found
