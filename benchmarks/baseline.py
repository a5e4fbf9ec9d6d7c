"""What quality.py is measured against: TF-IDF of words and characters with a linear SVM, as scikit-learn has them, on its very rows.

python benchmarks/baseline.py
"""

import time
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline, make_union
from sklearn.svm import LinearSVC

from cataloger.bundle import FORMAT
from cataloger.data.text import compose, split_hash, split_position
from quality import REAL, SETTINGS
from yardsticks import report, seconds

# One and two words, or these and three to five characters within a word.
WORDS: dict[str, Any] = {"ngram_range": (1, 2)}
CHARACTERS: dict[str, Any] = {"analyzer": "char_wb", "ngram_range": (3, 5), "max_features": 300_000}


def main() -> None:
    rows: list[dict[str, object]] = []
    for name in ("fashion10k", "instacart", "mwpd2020"):
        learned, scored = split(name)
        for title, model in (
            ("words", make_pipeline(TfidfVectorizer(**WORDS), LinearSVC(random_state=0))),
            (
                "words and characters",
                make_pipeline(
                    make_union(
                        TfidfVectorizer(sublinear_tf=True, **WORDS), TfidfVectorizer(sublinear_tf=True, **CHARACTERS)
                    ),
                    LinearSVC(random_state=0),
                ),
            ),
        ):
            took = seconds(lambda model=model, learned=learned: model.fit(learned["text"], learned["category"]))  # type: ignore[misc]
            rows.append({"catalog": name, "n-grams": title, **scores(model, scored), "seconds to train": took})
    report("baseline", "TF-IDF and a linear SVM, by scikit-learn, on the rows and columns of quality.py", rows)


def split(name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(rows to learn from, validation rows included, rows to score): the text and the category of each."""
    settings = SETTINGS[name]
    columns, limit = settings["text_columns"], settings["max_tokens"]

    def read(path: str) -> pd.DataFrame:
        table = pq.read_table(REAL / path)
        texts = compose(table, columns, limit)
        frame = pd.DataFrame({"text": texts.to_pylist(), "category": table.column("category_path").to_pylist()})
        frame["held out"] = split_position(split_hash(texts, FORMAT)) < settings.get("test_fraction", 0)
        return frame.dropna()

    if name == "mwpd2020":
        return pd.concat([read(f"{name}/train.parquet"), read(f"{name}/validation.parquet")]), read(
            f"{name}/test.parquet"
        )
    rows = read(f"{name}.parquet")
    return rows[~rows["held out"]], rows[rows["held out"]]


def scores(model: Any, scored: pd.DataFrame) -> dict[str, float]:
    started = time.perf_counter()
    given = model.predict(scored["text"])
    took = time.perf_counter() - started
    true, found = ([path.split(" > ") for path in paths] for paths in (scored["category"], given))

    def f1(level: int, average: str) -> float:
        return float(
            f1_score(*([" > ".join(path[:level]) for path in side] for side in (true, found)), average=average)
        )

    depth = max(map(len, true + found))
    return {
        "accuracy": float(np.mean([a == b for a, b in zip(true, found, strict=True)])),
        "weighted F1": f1(depth, "weighted"),
        "macro F1": f1(depth, "macro"),
        "mean over levels": float(np.mean([f1(level, "weighted") for level in range(1, depth + 1)])),
        "texts/s": len(scored) / took,
    }


if __name__ == "__main__":
    main()
