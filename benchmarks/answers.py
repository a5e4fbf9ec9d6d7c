"""What further answers cost: labelled texts per second of one model with one, two and three answers, in one process, on real titles.

python benchmarks/answers.py
"""

import itertools
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
import tyro

from cataloger.bundle import read_spec
from cataloger.data.inputs import input_of
from cataloger.model.network import new_classifier, save_bundle
from cataloger.model.predictor import Predictor
from cataloger.model.pretrained import base_model_folder
from cataloger.spec import MANY_CATEGORIES, ONE_CATEGORY, TAGS, Answer, Spec
from yardsticks import MAX_TOKENS, report, titles, workroom

CATEGORIES, NAMES = 400, 50
ONE, TWO, TAGGED = "one category", "two categories", "category and tags"


@dataclass(frozen=True)
class Config:
    """What to measure."""

    rows: int = 20_000
    """Titles; each model answers all of them, in turns."""
    rounds: int = 3
    """Turns; the best of each counts."""


def main() -> None:
    config = tyro.cli(Config)
    with workroom() as room:
        texts = titles(config.rows, room).select(["title"])
        models = {what: model(what, room / what.replace(" ", "-")) for what in (ONE, TWO, TAGGED)}
        best: dict[str, float] = {}
        for _, (what, folder) in itertools.product(range(config.rounds), models.items()):
            best[what] = max(best.get(what, 0.0), rate(folder, texts))
    report(
        "answers",
        "Texts per second by answers",
        [{"answers": what, "texts/s": found, "÷ one": found / best[ONE]} for what, found in best.items()],
    )


def model(what: str, folder: Path) -> Path:
    """MiniLM with untrained heads, which say of hardly any word that it is of a tag, as trained ones do."""
    categories = tuple(f"Department {n // 20} > Category {n}" for n in range(CATEGORIES))
    others = {
        ONE: (),
        TWO: (Answer("audience", MANY_CATEGORIES, tuple(f"Group {n}" for n in range(20))),),
        TAGGED: (Answer("tags", TAGS, tuple(f"Name {n}" for n in range(NAMES))),),
    }[what]
    # No title is cut: tags are read beyond where a category is, which costs what it reads, whatever answers.
    spec = Spec(categories, ("title",), MAX_TOKENS, "mean", "", head=ONE_CATEGORY, others=others)
    base = base_model_folder("minilm")
    torch.manual_seed(0)
    network = new_classifier(base, spec)
    for head in getattr(network, "words", ()):
        torch.nn.init.constant_(head.bias[:1], 2.0)
    save_bundle(folder, network, base, spec)
    return folder


def rate(folder: Path, texts: pa.Table) -> float:
    """Texts per second of the network and all that is made of its logits; what reading tasks do is not counted."""
    predictor = Predictor(folder, "cpu", "auto")
    given = input_of(read_spec(folder), folder)
    encoded = given.encode(given.read(texts).values)
    predictor.answer(encoded.take(np.arange(500)))
    started = time.perf_counter()
    predictor.answer(encoded)
    return len(encoded) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
