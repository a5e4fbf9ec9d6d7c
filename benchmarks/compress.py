"""From the dearest model to the cheapest: what each step of `jobs/compress.py` saves, and what it costs, on rows that training never saw.

python benchmarks/compress.py                  # instacart, and mwpd2020's official test
"""

import itertools
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from cataloger.bundle import INT8_WEIGHTS, WEIGHTS, read_spec, write_spec
from cataloger.compression.job import compress
from cataloger.config import CompressConfig
from cataloger.data.text import compose, split_hash, split_position
from cataloger.errors import ConfigError
from cataloger.model.registry import fetch_model
from cataloger.model.tiers import Tiers
from cataloger.spec import FORMAT
from quality import REAL, SETTINGS, file_of, learn, training
from tiers import RISK, altered
from yardsticks import forward_rate, report, steady_state, tokens_of, workroom

TEACHER, CUT, EIGHT, STUDENT, ALL = "6 layers", "vocabulary cut", "int8", "{} layers", "{} layers, vocabulary cut, int8"
# Titles for the rates: instacart's own, words altered, as the other benchmarks have them.
TITLES = "instacart"
ROUNDS = 3


@dataclass(frozen=True)
class Config:
    """What to measure."""

    sets: tuple[str, ...] = ("instacart", "mwpd2020")
    """Catalogs."""
    layers: tuple[int, ...] = (3,)
    """Of the students."""
    rows: int = 30_000
    """Titles for the rates of the networks alone; the job labels eight times as many."""
    seed: int = 0
    """Of the trainings."""
    teacher: str | None = None
    """A model of the one catalog, trained before without the rows to score."""
    epochs: int = 5
    """Of all trainings. They are plain ones, without adversarial training, as students are."""


def main() -> None:
    config = tyro.cli(Config)
    rows: list[dict[str, object]] = []
    with workroom() as room:
        for name in config.sets:
            rows += measure(name, config, room)
    report("compress", "What a cheaper model saves and costs", rows)


def measure(name: str, config: Config, room: Path) -> list[dict[str, object]]:
    """One line for each model, all rates in one run."""
    teacher = (
        Path(config.teacher)
        if config.teacher
        else learn(name, config.seed, room, epochs=config.epochs, adversarial=0.0, tier_risk=RISK.get(name))
    )
    models = {TEACHER: teacher}
    trained = training(name, config.seed, room)
    assert trained.catalog

    def made(source: Path, **how: Any) -> Path | None:
        try:
            done = compress(
                CompressConfig(
                    catalog=trained.catalog,
                    eval_catalog=trained.eval_catalog,
                    model=(str(source),),
                    storage=str(room / "checkpoints"),
                    model_name=f"{name}-compressed",
                    seed=config.seed,
                    **how,
                )
            )
        except ConfigError as problem:  # eight bits that change too many answers
            print(f"{name}: {problem}", flush=True)
            return None
        return fetch_model(done.model_uri).folder

    found = {CUT: made(teacher, prune_vocabulary=True), EIGHT: made(teacher, precision="int8")}
    for layers in config.layers:
        student = made(teacher, layers=layers, epochs=config.epochs, tier_risk=RISK.get(name))
        assert student
        found[STUDENT.format(layers)] = student
        found[ALL.format(layers)] = made(student, prune_vocabulary=True, precision="int8")
    models |= {what: folder for what, folder in found.items() if folder}
    return scored(name, models, config, room)


def scored(name: str, models: dict[str, Path], config: Config, room: Path) -> list[dict[str, object]]:
    """Of models that are there."""
    settings, titles = SETTINGS[name], altered(TITLES, config.rows)
    texts = titles.column("title").combine_chunks()
    ready = {what: (without_words(folder, room / name / what), folder) for what, folder in models.items()}
    tokens = {what: tokens_of(folder, texts, settings["max_tokens"]) for what, folder in models.items()}
    rates: dict[str, float] = {}
    for _, (what, (network, _)) in itertools.product(
        range(ROUNDS), ready.items()
    ):  # in turns: a machine changes its speed
        rates[what] = max(rates.get(what, 0.0), forward_rate(network, tokens[what]))
    rows, test = [], held_out(name)
    true = np.array(test.column("category_path").to_pylist(), object)
    by_teacher = answers(models[TEACHER], test)
    for what, (network, folder) in ready.items():
        row: dict[str, object] = {
            "catalog": name,
            "model": what,
            "MB": (folder / (INT8_WEIGHTS if (folder / INT8_WEIGHTS).exists() else WEIGHTS)).stat().st_size / 1e6,
            "forward, rows/s": rates[what],
            "÷ 6 layers": rates[what] / rates[TEACHER],
            "accuracy": float(np.mean(answers(folder, test, tiers=True) == true)),
            "every row by both": float(np.mean(answers(folder, test) == true)),
            "network alone": float(np.mean(answers(network, test) == true)),
            "as the 6 layers": float(np.mean(answers(folder, test) == by_teacher)),
        }
        if name == TITLES:
            whole = what in (TEACHER, ALL.format(config.layers[0]))
            many = altered(TITLES, 8 * config.rows) if whole else titles
            row["job with tiers ÷ forward of 6 layers"] = (
                steady_state(folder, many, room)[0] / rates[TEACHER] if whole else ""
            )
        print(row, flush=True)
        rows.append(row)
    return rows


def held_out(name: str) -> pa.Table:
    """The rows that training never saw."""
    if name == "mwpd2020":
        return pq.read_table(REAL / "mwpd2020" / "test.parquet")
    table, settings = pq.read_table(file_of(name)), SETTINGS[name]
    texts = compose(table, settings["text_columns"], settings["max_tokens"])
    return table.filter(pa.array(split_position(split_hash(texts, FORMAT)) < settings["test_fraction"]))


def answers(folder: Path, rows: pa.Table, tiers: bool = False) -> np.ndarray:
    """The category of each row, as the model has it, or by words and network together about all of them."""
    spec = read_spec(folder)
    model = Tiers(folder, spec=spec if tiers else spec.without_tiers(), precision="auto")
    return np.array(model.label(rows.select(spec.text_columns)).column("category").to_pylist(), object)


def without_words(folder: Path, target: Path) -> Path:
    """For the raw forward pass of its network."""
    shutil.copytree(folder, target)
    write_spec(target, replace(read_spec(folder), words=None))
    return target


if __name__ == "__main__":
    main()
