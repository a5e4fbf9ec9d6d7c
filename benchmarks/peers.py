"""cataloger and its peers, each at its best and warm, on the same titles: how well they label what training never saw, and how fast.

pip install --no-deps --target .venv/peers --requirement benchmarks/peers.txt
python benchmarks/peers.py
"""

import importlib.util
import itertools
import multiprocessing
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import tyro

from baseline import scores, split
from cataloger.bundle import read_spec, write_spec
from cataloger.config import EvaluateConfig
from cataloger.evaluation.evaluate import evaluate
from cataloger.model.registry import fetch_model
from cataloger.training.job import train
from learners import (
    Answer,
    Way,
    by_fasttext,
    by_infinity,
    by_model2vec,
    by_scikit_learn,
    by_sentence_transformers,
    speed,
)
from quality import BOTH, NETWORK, SETTINGS, apart, file_of, training
from tiers import RISK, altered
from yardsticks import RESULTS, forward_rate, report, run, seconds, steady_state, tokens_of, workroom

CATALOG = "instacart"
CEILING, OURS = "raw forward pass of MiniLM", "cataloger, "
INSTALL = "pip install --no-deps --target {} --requirement benchmarks/peers.txt"


@dataclass(frozen=True)
class Config:
    """What to measure."""

    rows: int = 60_000
    """Titles to label."""
    words_rows: int = 2_400_000
    """Titles for cataloger's words alone: fewer are labelled before the difference of two jobs can be told from their start."""
    learn_from: int | None = None
    """Learn from so many rows in place of all, the network once, and score as many: a quick try."""
    peers: tuple[str, ...] = ("scikit-learn", "fastText", "model2vec", "sentence-transformers", "Infinity")
    """Whom to measure beside cataloger."""
    seed: int = 0
    """Of cataloger's training."""
    bundle: str | None = None
    """A model of the catalog, trained before and without the rows to score."""
    libraries: str = ".venv/peers"
    """Folder with the libraries of the peers."""


def main() -> None:
    config = tyro.cli(Config)
    sys.path.append(config.libraries)  # last: what both have is ours
    modules = {"fastText": "fasttext", "model2vec": "model2vec", "Infinity": "infinity_emb"}
    missing = [name for name in config.peers if name in modules and not importlib.util.find_spec(modules[name])]
    if missing:
        sys.exit(f"{config.libraries} has no {' and no '.join(missing)}: {INSTALL.format(config.libraries)}")
    learned, scored = split(CATALOG)
    learned, scored = learned.sample(frac=1, random_state=0)[: config.learn_from], scored[: config.learn_from]
    table = altered(CATALOG, config.rows)
    titles = table.column("title").to_pylist()
    given = learned["text"].to_numpy(object), learned["category"].to_numpy(object)
    with workroom() as room:
        network, tokens, measured = ours(config, learned.index.union(scored.index), table, room)
        learners: dict[str, Callable[[], Way]] = {
            "scikit-learn": partial(by_scikit_learn, *given),
            "fastText": partial(by_fasttext, *given),
            "model2vec": partial(by_model2vec, *given),
            "sentence-transformers": partial(by_sentence_transformers, *given, titles[:2_000]),
            "Infinity": partial(by_infinity, network, titles[:2_000]),
        }
        for name in config.peers:
            measured.append({"way": name, **of_peer(learners[name](), scored, titles)})
            print(measured[-1])
    forward = next(row["titles/s"] for row in measured if row["way"] == CEILING)
    for row in measured:
        last = {key: row.pop(key) for key in ("seconds to train", "settings")}
        row |= {"tokens/s": row["titles/s"] * tokens, "÷ forward pass": row["titles/s"] / forward, **last}
    name = "peers" if config.learn_from is None else "peers-tiny"
    title = f"{CATALOG}, {len(scored):,} titles that training never saw: accuracy, and speed on {len(titles):,} of them with words altered"
    report(name, title, measured)
    draw(name, title, measured)


def ours(config: Config, rows: pd.Index, table: pa.Table, room: Path) -> tuple[Path, float, list[dict[str, Any]]]:
    """(bundle of the network alone, tokens of a title, what was measured); the forward pass is the last of it."""
    pq.write_table(pq.read_table(file_of(CATALOG)).take(pa.array(rows)), room / "catalog.parquet")
    words, words_took = trained(config, room, base_model="none")
    more = {"tier_risk": RISK[CATALOG], "epochs": 1 if config.learn_from else None}
    bundle, took = (Path(config.bundle), None) if config.bundle else trained(config, room, **more)
    folders = apart(bundle, room / "apart")
    tokens = tokens_of(bundle, table.column("title").combine_chunks(), SETTINGS[CATALOG]["max_tokens"])
    every = shutil.copytree(bundle, room / "every")
    write_spec(every, read_spec(bundle).without_tiers())
    pq.write_table(table.slice(0, 2_000), room / "few.parquet")
    run(bundle, room / "few.parquet", room / "labels-of-few")  # the page cache is warm
    before, measured = forward_rate(folders[NETWORK], tokens), []
    for way, folder, labelled, spent in (
        ("words alone", words, altered(CATALOG, config.words_rows), words_took),
        ("tiers", folders[BOTH], table, took),
        ("words and network", every, table, took),
        ("network alone", folders[NETWORK], table, took),
    ):
        found = evaluate(EvaluateConfig(str(room / "catalog.parquet"), (str(folder),), split="test")).overall
        rate, _, result = steady_state(folder, labelled, room)
        answered = f"words answer {result.cost.alone / max(1, result.cost.asked):.0%} alone" if way == "tiers" else ""
        measured.append({"way": OURS + way, **figures(found.accuracy, found.macro_f1, rate, spent, answered)})
        print(measured[-1])
    # The machine may have changed its speed meanwhile.
    forward = (before + forward_rate(folders[NETWORK], tokens)) / 2
    measured.append({"way": CEILING, **figures(None, None, forward, None, "sorted, tokens ready")})
    # transformers makes a module of a folder's name, and wants no space in it.
    return shutil.copytree(folders[NETWORK], room / "network"), float(tokens.lengths.mean()), measured


def trained(config: Config, room: Path, **more: Any) -> tuple[Path, float]:
    """(bundle, seconds), with Ray's start."""
    plan = replace(training(CATALOG, config.seed, room, **more), catalog=str(room / "catalog.parquet"))
    started = time.perf_counter()
    folder = fetch_model(train(plan).model_uri).folder
    return folder, time.perf_counter() - started


def of_peer(way: Way, scored: pd.DataFrame, titles: list[str]) -> dict[str, Any]:
    found = scores(way, scored)
    rate, processes = fastest(way, titles)
    way.stop()
    settings = way.settings + (f"; {processes} processes" if processes > 1 else "")
    return figures(found["accuracy"], found["macro F1"], rate, way.took, settings)


def figures(accuracy: float | None, f1: float | None, rate: float, took: float | None, settings: str) -> dict[str, Any]:
    shown = {"accuracy": accuracy, "macro F1": f1, "titles/s": rate, "seconds to train": took, "settings": settings}
    return {key: "" if value is None else value for key, value in shown.items()}


def fastest(way: Way, titles: list[str]) -> tuple[float, int]:
    """(titles/s, processes): in this process, or where it uses one core in as many forked ones as there are, whichever is faster."""
    cores, alone = torch.get_num_threads(), speed(way.predict, titles)
    if not way.forks:
        return alone, 1
    parts = [titles[start : start + 1_000] for start in range(0, len(titles), 1_000)]
    with multiprocessing.get_context("fork").Pool(cores, _begin, (way.predict,)) as pool:
        pool.map(_answer, parts[: 2 * cores], chunksize=1)
        together = len(titles) / seconds(lambda: pool.map(_answer, parts, chunksize=1))
    return max((alone, 1), (together, cores))


def _begin(predict: Answer) -> None:
    global _predict
    _predict = predict


def _answer(titles: list[str]) -> Sequence[str]:
    return _predict(titles)


def draw(name: str, title: str, rows: list[dict[str, Any]]) -> None:
    """Each way a point; its name is put where it hides no other."""
    figure, axes = plt.subplots(figsize=(9, 6), layout="constrained")
    points = [row for row in rows if row["way"] != CEILING]
    for row in points:
        color = "#D55E00" if row["way"].startswith(OURS) else "#0072B2"
        axes.scatter(row["titles/s"], row["accuracy"], color=color)
    forward = next(row["titles/s"] for row in rows if row["way"] == CEILING)
    axes.axvline(forward, color="0.6", linestyle="--", label=CEILING)
    axes.set(xscale="log", xlabel="titles/s, warm", ylabel="accuracy")
    axes.margins(0.15)
    axes.legend(loc="lower left", frameon=False)
    figure.suptitle(title, fontsize=10)
    figure.canvas.draw()
    taken = []
    for row in points:
        for x, y in itertools.product((8, -8), (0, 14, -14, 28, -28)):
            text = axes.annotate(
                row["way"],
                (row["titles/s"], row["accuracy"]),
                (x, y),
                textcoords="offset points",
                ha="left" if x > 0 else "right",
                va="center",
                fontsize=9,
            )
            box = text.get_window_extent()
            if (x, y) == (-8, -28) or not any(box.overlaps(other) for other in taken):
                break
            text.remove()
        taken.append(box)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / f"{name}.png", dpi=120)


if __name__ == "__main__":
    main()
