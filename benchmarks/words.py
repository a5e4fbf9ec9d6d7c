"""The linear model of words and characters: how fast it is trained and how many titles a second one core answers.

python benchmarks/words.py
"""

import time
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
from sklearn.feature_extraction.text import HashingVectorizer
from threadpoolctl import threadpool_limits

from cataloger.config import EvaluateConfig, TrainConfig
from cataloger.data.ngrams import ngrams
from cataloger.evaluation.evaluate import evaluate
from cataloger.model.registry import fetch_model
from cataloger.model.tiers import Tiers
from cataloger.training.job import train
from quality import REAL, SETTINGS
from yardsticks import report, seconds, workroom

ROUNDS = 5


def main() -> None:
    rows: list[dict[str, object]] = []
    with workroom() as room:
        for name in ("fashion10k", "instacart", "mwpd2020"):
            rows.append({"catalog": name, **measure(name, room)})
    report("words", "Words and characters alone (--base-model none)", rows)


def measure(name: str, room: Path) -> dict[str, float]:
    settings = {key: SETTINGS[name][key] for key in ("text_columns", "max_tokens")}
    official = name == "mwpd2020"
    catalog = REAL / name / "train.parquet" if official else REAL / f"{name}.parquet"
    config = TrainConfig(
        catalog=str(catalog),
        eval_catalog=str(REAL / name / "validation.parquet") if official else None,
        test_fraction=0.0 if official else 0.2,
        base_model="none",
        storage=str(room / "checkpoints"),
        model_name=name,
        **settings,
    )
    started = time.perf_counter()
    trained = train(config)
    took = time.perf_counter() - started
    scored = REAL / name / "test.parquet" if official else catalog
    found = evaluate(
        EvaluateConfig(catalog=str(scored), model=(trained.model_uri,), split="all" if official else "test")
    )
    tiers = Tiers(fetch_model(trained.model_uri).folder)
    texts = tiers.input.read(pq.read_table(catalog)).values.drop_null()
    ours, theirs = rates(tiers, texts)
    return {
        "categories": len(tiers.spec.categories),
        "accuracy": found.overall.accuracy,
        "macro F1": found.overall.macro_f1,
        "mean over levels": found.mean_weighted_f1,
        "calibration": found.calibration_error,
        "seconds to train, Ray included": took,
        "texts/s of one core": ours["answers"],
        "n-grams alone": ours["n-grams"],
        "scikit-learn's n-grams": theirs,
        "characters": pc.mean(pc.utf8_length(texts)).as_py(),
        "file, MB": (fetch_model(trained.model_uri).folder / "words.safetensors").stat().st_size / 1e6,
    }


def rates(tiers: Tiers, texts: Any) -> tuple[dict[str, float], float]:
    """Texts a second of one core, the best of several rounds in turn: ours, and scikit-learn's hashing of the characters alone."""
    vectorizer, strings = HashingVectorizer(analyzer="char_wb", ngram_range=(3, 5)), texts.to_pylist()
    best = {"answers": 0.0, "n-grams": 0.0, "theirs": 0.0}
    with threadpool_limits(1):
        for _ in range(ROUNDS):
            for name, work in (
                ("answers", lambda: tiers.answer(texts, 3)),
                ("n-grams", lambda: ngrams(texts)),
                ("theirs", lambda: vectorizer.transform(strings)),
            ):
                best[name] = max(best[name], len(texts) / seconds(work))
    return best, best.pop("theirs")


if __name__ == "__main__":
    main()
