"""New categories without a training: a tenth of a catalog's categories is hidden from a model, then named, with a few products of each.

Against trainings that see the same products, and all. python benchmarks/extend.py
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tyro

from cataloger.adapting.extend import extend
from cataloger.config import ExtendConfig, TrainConfig
from cataloger.model.registry import fetch_model
from cataloger.model.tiers import Tiers
from cataloger.training.job import train
from quality import REAL, SETTINGS
from yardsticks import report, seconds, workroom

MOST_EXAMPLES = 20
# Hidden are categories that have examples enough, and something to be scored by.
SCORED = 3


@dataclass(frozen=True)
class Config:
    """What to measure."""

    sets: tuple[str, ...] = ("instacart", "mwpd2020")
    examples: tuple[int, ...] = (0, 1, 5, 20)
    base_model: str = "none"
    """none is words alone."""
    epochs: int = 2
    """Of a network."""
    retrain: bool = True
    """Train anew with the same products as well."""
    seed: int = 0


def main() -> None:
    config, rows = tyro.cli(Config), list[dict[str, object]]()
    with workroom() as room:
        for name in config.sets:
            rows += measure(name, config, room)
    suffix = "" if config.base_model == "none" else "_network"
    report(f"extend{suffix}", "A tenth of the categories is new", rows)


def measure(name: str, config: Config, room: Path) -> list[dict[str, object]]:
    learnt, test = split(name)
    columns = list(SETTINGS[name]["text_columns"])
    counts = {row["values"]: row["counts"] for row in pc.value_counts(learnt.column("category_path")).to_pylist()}
    scored = {row["values"]: row["counts"] for row in pc.value_counts(test.column("category_path")).to_pylist()}
    enough = sorted(path for path, count in counts.items() if count >= MOST_EXAMPLES and scored.get(path, 0) >= SCORED)
    rng = np.random.default_rng(config.seed)
    new = pa.array(sorted(rng.choice(enough, max(1, round(len(counts) / 10)), replace=False).tolist()))
    is_new = pc.is_in(learnt.column("category_path"), new)
    old, others = learnt.filter(pc.invert(is_new)), learnt.filter(is_new)
    others = others.take(pa.array(rng.permutation(len(others))))
    rows: list[dict[str, object]] = []

    def add(how: str, examples: object, uri: str, took: float) -> None:
        said = Tiers(fetch_model(uri).folder, precision="auto").label(test).column("category")
        right = pc.equal(said, test.column("category_path"))
        side = pc.is_in(test.column("category_path"), new)
        rows.append(
            {
                "catalog": name,
                "new categories": len(new),
                "examples of each": examples,
                "how": how,
                "accuracy, new": pc.mean(right.filter(side)).as_py(),
                "accuracy, old": pc.mean(right.filter(pc.invert(side))).as_py(),
                "seconds": took,
            }
        )

    def trained(table: pa.Table, model_name: str) -> tuple[str, float]:
        pq.write_table(table, room / f"{model_name}.parquet")
        more: dict[str, Any] = {} if config.base_model == "none" else {"epochs": config.epochs}
        settings = {key: SETTINGS[name][key] for key in ("text_columns", "max_tokens")}
        about = TrainConfig(
            catalog=str(room / f"{model_name}.parquet"),
            base_model=config.base_model,
            storage=str(room / "checkpoints"),
            model_name=model_name,
            seed=config.seed,
            **settings,
            **more,
        )
        uris: list[str] = []
        took = seconds(lambda: uris.append(train(about).model_uri))
        return uris[0], took

    model, took = trained(old, f"{name}-old")
    add("the model before", "", model, took)
    for examples in config.examples:
        chosen = pa.concat_tables(
            [others.filter(pc.equal(others.column("category_path"), path)).slice(0, examples) for path in new]
        )
        names = pa.table({"category_path": new, **{column: pa.nulls(len(new), pa.string()) for column in columns}})
        shown = chosen.select(["category_path", *columns])
        pq.write_table(pa.concat_tables([shown.cast(names.schema), names]), room / "new.parquet")
        about = ExtendConfig(
            categories=str(room / "new.parquet"),
            catalog=str(room / f"{name}-old.parquet"),
            model=model,
            model_name=f"{name}-extended",
        )
        uris: list[str] = []
        took = seconds(lambda about=about, uris=uris: uris.append(extend(about).model_uri))  # type: ignore[misc]
        add("jobs/extend.py", examples, uris[0], took)
        if config.retrain and examples:
            add("trained anew with these", examples, *trained(pa.concat_tables([old, chosen]), f"{name}-{examples}"))
    if config.retrain:
        add("trained anew with all", "all", *trained(learnt, f"{name}-all"))
    return rows


def split(name: str) -> tuple[pa.Table, pa.Table]:
    """(rows to learn from, rows to score): the official ones, or a fifth by chance."""
    if name == "mwpd2020":
        parts = [pq.read_table(REAL / name / f"{part}.parquet") for part in ("train", "validation", "test")]
        return pa.concat_tables(parts[:2], promote_options="default"), parts[2]
    table = pq.read_table(REAL / f"{name}.parquet")
    rows = np.random.default_rng(7).permutation(len(table))
    test, learnt = np.split(rows, [len(rows) // 5])
    return table.take(pa.array(learnt)), table.take(pa.array(test))


if __name__ == "__main__":
    main()
