"""From the dearest model to the cheapest: what each step of `jobs/compress.py` saves, and what it costs, on rows that training never saw.

python benchmarks/compress.py                  # instacart, and mwpd2020's official test
"""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import tyro

from cataloger.bundle import INT8_WEIGHTS, WEIGHTS, read_spec, write_spec
from cataloger.compression.job import compress
from cataloger.config import CompressConfig
from cataloger.errors import ConfigError
from cataloger.model.registry import fetch_model
from cataloger.model.tiers import Tiers
from quality import BOTH, NETWORK, SETTINGS, apart, learn, score, training
from tiers import altered
from yardsticks import forward_rate, report, steady_state, tokens_of, workroom

TEACHER, CUT, EIGHT, STUDENT, ALL = "6 layers", "vocabulary cut", "int8", "{} layers", "{} layers, vocabulary cut, int8"
# Titles for the rates: instacart's own, words altered, as the other benchmarks have them.
TITLES = "instacart"


@dataclass(frozen=True)
class Config:
    """What to measure."""

    sets: tuple[str, ...] = ("instacart", "mwpd2020")
    """Catalogs."""
    layers: tuple[int, ...] = (3,)
    """Of the students."""
    rows: int = 60_000
    """Titles for the rates."""
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
        else learn(name, config.seed, room, epochs=config.epochs, adversarial=0.0)
    )
    models = {TEACHER: teacher}
    catalog = training(name, config.seed, room).catalog
    assert catalog

    def made(source: Path, **how: Any) -> Path | None:
        try:
            done = compress(
                CompressConfig(
                    catalog=catalog,
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
        student = made(teacher, layers=layers, epochs=config.epochs)
        assert student
        found[STUDENT.format(layers)] = student
        found[ALL.format(layers)] = made(student, prune_vocabulary=True, precision="int8")
    models |= {what: folder for what, folder in found.items() if folder}
    table = altered(TITLES, config.rows)
    texts = table.column("title").combine_chunks()
    expected = answers(teacher, texts)
    networks = {what: without_words(folder, room / name / what) for what, folder in models.items()}
    forward = forward_rate(networks[TEACHER], tokens_of(teacher, texts, SETTINGS[name]["max_tokens"]))
    rows = []
    for what, folder in models.items():
        own = forward_rate(networks[what], tokens_of(folder, texts, SETTINGS[name]["max_tokens"]))
        accuracy = {
            who: score(name, one, room).overall.accuracy
            for who, one in apart(folder, room / name / f"{what} apart").items()
        }
        row: dict[str, object] = {
            "catalog": name,
            "model": what,
            "MB": (folder / (INT8_WEIGHTS if (folder / INT8_WEIGHTS).exists() else WEIGHTS)).stat().st_size / 1e6,
            "forward, rows/s": own,
            "÷ 6 layers": own / forward,
            "accuracy": accuracy[BOTH],
            "network alone": accuracy[NETWORK],
            "as the 6 layers": float(np.mean(answers(folder, texts) == expected)),
        }
        if name == TITLES:
            rate, *_ = steady_state(folder, table, room)
            row["job with tiers ÷ forward of 6 layers"] = rate / forward
        print(row, flush=True)
        rows.append(row)
    return rows


def answers(folder: Path, texts: pa.Array) -> np.ndarray:
    """The category of each title by words and network, all of them asked."""
    spec = read_spec(folder).without_tiers()
    others = {column: pa.nulls(len(texts), pa.string()) for column in spec.text_columns}
    labels = Tiers(folder, spec=spec, precision="auto").label(pa.table({**others, spec.text_columns[0]: texts}))
    return np.array(labels.column("category").to_pylist(), object)


def without_words(folder: Path, target: Path) -> Path:
    """For the raw forward pass of its network."""
    shutil.copytree(folder, target)
    write_spec(target, replace(read_spec(folder), words=None))
    return target


if __name__ == "__main__":
    main()
