"""What quality.py is measured against: TF-IDF of one and two words with a linear SVM, as scikit-learn has them.

python benchmarks/baseline.py
"""

from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import f1_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.svm import LinearSVC

from yardsticks import report

REAL = Path(__file__).parents[2] / "shared" / "data"
# A fifth at random is scored, by seed; of mwpd2020 the official test.
SEEDS = (0, 1, 2)


def main() -> None:
    rows: list[dict[str, object]] = []
    for name in ("fashion10k", "instacart"):
        catalog = pd.read_parquet(REAL / f"{name}.parquet").dropna(subset="title")
        found = [score(*train_test_split(catalog, test_size=0.2, random_state=seed)) for seed in SEEDS]
        rows.append({"catalog": name, **pd.DataFrame(found).mean().to_dict()})
    learned, scored = (
        pd.concat(pd.read_parquet(REAL / "mwpd2020" / f"{part}.parquet") for part in parts).fillna({"title": ""})
        for parts in (("train", "validation"), ("test",))
    )
    rows.append({"catalog": "mwpd2020", **score(learned, scored)})
    report("baseline", "TF-IDF of one and two words of the title, linear SVM", rows)


def score(learned: pd.DataFrame, scored: pd.DataFrame) -> dict[str, float]:
    model = make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LinearSVC(random_state=0))
    model.fit(learned["title"], learned["category_path"])
    true, given = (
        [path.split(" > ") for path in paths] for paths in (scored["category_path"], model.predict(scored["title"]))
    )

    def f1(level: int, average: str) -> float:
        return float(
            f1_score(*([" > ".join(path[:level]) for path in side] for side in (true, given)), average=average)
        )

    depth = max(map(len, true + given))
    return {
        "accuracy": float(np.mean([a == b for a, b in zip(true, given, strict=True)])),
        "weighted F1": f1(depth, "weighted"),
        "macro F1": f1(depth, "macro"),
        "mean over levels": float(np.mean([f1(level, "weighted") for level in range(1, depth + 1)])),
    }


if __name__ == "__main__":
    main()
