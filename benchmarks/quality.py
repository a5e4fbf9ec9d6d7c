"""How well words and the bundled MiniLM learn real catalogs: trained and scored once per seed, on rows that training never saw.

python benchmarks/quality.py
"""

import itertools
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tyro

from cataloger.bundle import read_spec, write_spec
from cataloger.config import EvaluateConfig, TrainConfig
from cataloger.evaluation.evaluate import evaluate
from cataloger.evaluation.report import Evaluation
from cataloger.model.registry import fetch_model
from cataloger.spec import MANY_CATEGORIES, NO_NETWORK
from cataloger.training.job import train
from cataloger.training.plan import plan
from yardsticks import report, workroom

REAL = Path(__file__).parents[2] / "shared" / "data"
# One entry per training: a session may be too short for all of them, and the table is made of what is there.
SCORES = Path(__file__).parent / "results" / "quality_scores.json"
TITLES: dict[str, Any] = {"text_columns": ("title",), "max_tokens": 32, "test_fraction": 0.2}
# The columns to read, and which rows to score: a fifth by text hash, or the official test. All else is what training chooses itself.
SETTINGS: dict[str, dict[str, Any]] = {
    "fashion10k": TITLES,
    "instacart": TITLES,
    "mwpd2020": {"text_columns": ("title", "shop_category", "description"), "max_tokens": 64},
    "magento": {
        "text_columns": ("title", "description"),
        "label_column": ("category_paths",),
        "group_column": "group_id",
        "test_fraction": 0.2,
    },
    "grocerystore": {"text_columns": (), "image_column": "image"},
}
# Whose makers say which rows are for the test.
OFFICIAL = ("mwpd2020", "grocerystore")
FIGURES = {
    "accuracy": lambda found: found.overall.accuracy,
    "one level up": lambda found: found.levels[max(0, len(found.levels) - 2)].accuracy,
    "weighted F1": lambda found: found.overall.weighted_f1,
    "macro F1": lambda found: found.overall.macro_f1,
    "micro F1": lambda found: found.overall.micro_f1,
    "by product": lambda found: found.overall.example_f1,
    "mean over levels": lambda found: found.mean_weighted_f1,
    "calibration": lambda found: found.calibration_error,
    "at 95%": lambda found: found.coverage_at_95,
}
# What a training chooses by itself.
CHOSEN = ("epochs", "batch_size", "adversarial", "level_weights", "tier_risk")
BOTH, NETWORK, BY_WORDS = "words and network", "network alone", "words alone"


@dataclass(frozen=True)
class Config:
    """What to measure."""

    sets: tuple[str, ...] = tuple(SETTINGS)
    """Catalogs."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Each is trained once per seed, those with figures in results/quality_scores.json not again; the table has mean ± half the spread."""


def main() -> None:
    config = tyro.cli(Config)
    scores: dict[str, dict[str, Any]] = json.loads(SCORES.read_text()) if SCORES.exists() else {}
    with workroom() as room:
        for name, seed in itertools.product(config.sets, config.seeds):
            chosen = plan(training(name, seed, room)).config
            settings = json.loads(json.dumps({key: getattr(chosen, key) for key in CHOSEN} | SETTINGS[name]))
            if scores.get(f"{name} {seed}", {}).get("settings") == settings:
                continue  # trained and scored once
            bundle = learn(name, seed, room)
            found = {who: score(name, folder, room) for who, folder in apart(bundle, room / f"{name}-{seed}").items()}
            figures = {who: {title: read(one) for title, read in FIGURES.items()} for who, one in found.items()}
            words = read_spec(bundle).words
            about = {"settings": settings, "rows": found[BOTH].rows, "certificate": words.certificate if words else ""}
            scores[f"{name} {seed}"] = {**about, "figures": figures}
            SCORES.write_text(json.dumps(scores, indent=1))
    rows: list[dict[str, object]] = []
    for name in SETTINGS:
        trained = [entry for key, entry in scores.items() if key.split()[0] == name]
        for who in trained[0]["figures"] if trained else ():
            titles = [title for title in FIGURES if who == BOTH or title not in ("calibration", "at 95%")]
            columns = dict.fromkeys(FIGURES, "")
            # What was scored before there was this figure does not have it.
            columns |= {
                title: shown([entry["figures"][who].get(title, np.nan) for entry in trained]) for title in titles
            }
            rows.append({"catalog": name, "": who, "rows": trained[0]["rows"], "seeds": len(trained), **columns})
    report("quality", "Words and a fine-tuned MiniLM: mean ± half the spread over the seeds", rows)


def learn(name: str, seed: int, room: Path, **more: Any) -> Path:
    """The bundle of a training on all but the rows to score."""
    return fetch_model(train(training(name, seed, room, **more)).model_uri).folder


def training(name: str, seed: int, room: Path, **more: Any) -> TrainConfig:
    settings = {**SETTINGS[name], **more}
    if name == "mwpd2020":
        # A third of the official validation rows stays out: those held out by hash would resemble training more than the test does.
        catalog, held_out = room / "learned.parquet", room / "held-out.parquet"
        official = [pq.read_table(REAL / "mwpd2020" / f"{part}.parquet") for part in ("train", "validation")]
        rows = np.arange(len(official[1]))
        pq.write_table(pa.concat_tables([official[0], official[1].take(pa.array(rows[rows % 3 > 0]))]), catalog)
        pq.write_table(official[1].take(pa.array(rows[rows % 3 == 0])), held_out)
        settings["eval_catalog"] = str(held_out)
    elif name == "grocerystore":
        catalog, held_out = of_split("train", room), of_split("val", room)
        settings["eval_catalog"] = str(held_out)
    else:
        catalog = file_of(name)
    return TrainConfig(catalog=str(catalog), seed=seed, storage=str(room / "checkpoints"), model_name=name, **settings)


def apart(bundle: Path, room: Path) -> dict[str, Path]:
    """The bundle, and copies of it that have its words alone, and its network alone: for one category per product.

    The confidences of the copies are not calibrated.
    """
    spec, found = read_spec(bundle), {BOTH: bundle}
    if spec.head == MANY_CATEGORIES or not spec.words:
        return found
    for who, own in (
        (NETWORK, replace(spec, words=None, temperature=spec.words.network_temperature)),
        (BY_WORDS, replace(spec, pooling=NO_NETWORK, thresholds=())),
    ):
        found[who] = shutil.copytree(bundle, room / who)
        write_spec(found[who], own)
    return found


def file_of(name: str) -> Path:
    return REAL / f"{name}.parquet"


def of_split(name: str, room: Path) -> Path:
    """The rows of grocerystore that its makers put there, in small row groups."""
    rows = pq.read_table(REAL / "grocerystore.parquet", filters=[("split", "=", name)])
    pq.write_table(rows, room / f"{name}.parquet", row_group_size=500)
    return room / f"{name}.parquet"


def score(name: str, bundle: Path, room: Path, tiers: Literal["auto", "off"] = "auto") -> Evaluation:
    """On the rows that training never saw."""
    official = name in OFFICIAL
    test = of_split("test", room) if name == "grocerystore" else REAL / "mwpd2020" / "test.parquet"
    return evaluate(
        EvaluateConfig(
            catalog=str(test if official else file_of(name)),
            model=(str(bundle),),
            label_column=SETTINGS[name].get("label_column", ("category_path",)),
            split="all" if official else "test",
            tiers=tiers,
        )
    )


def shown(values: list[float]) -> str:
    if np.isnan(values).any():
        return ""
    spread = f" ± {(max(values) - min(values)) / 2:.3f}" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{spread}"


if __name__ == "__main__":
    main()
