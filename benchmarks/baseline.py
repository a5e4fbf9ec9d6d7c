"""What quality.py is measured against, on its very rows: a linear SVM, as scikit-learn has it, of words and characters by TF-IDF, or of
what the picture network sees without any fine-tuning.

python benchmarks/baseline.py
"""

import time
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline, make_union
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from cataloger.data.images import decode
from cataloger.data.text import compose, split_hash, split_position
from cataloger.model.sight import EMBEDDED, load_sight, sight_of
from cataloger.spec import FORMAT
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
            ("words and characters", words_and_characters()),
        ):
            took = seconds(lambda model=model, learned=learned: model.fit(learned["text"], learned["category"]))  # type: ignore[misc]
            rows.append({"catalog": name, "of": title, **scores(model, scored), "seconds to train": took})
    rows.append({"catalog": "grocerystore", "of": "the picture network's vectors", **of_pictures()})
    report("baseline", "A linear SVM, by scikit-learn, on the rows and columns of quality.py", rows)


def words_and_characters(C: float = 1.0) -> Any:
    texts = make_union(TfidfVectorizer(sublinear_tf=True, **WORDS), TfidfVectorizer(sublinear_tf=True, **CHARACTERS))
    return make_pipeline(texts, LinearSVC(C=C, random_state=0))


def of_pictures() -> dict[str, float]:
    """The official test rows of grocerystore, after train and validation; C is what validation preferred of .0001, .001, .01 and .1."""
    started = time.perf_counter()
    learned, tried, scored = (seen(part) for part in ("train", "val", "test"))
    model = {C: make_pipeline(StandardScaler(), LinearSVC(C=C, random_state=0)) for C in (1e-4, 1e-3, 1e-2, 1e-1)}
    best = max(model, key=lambda C: model[C].fit(*learned).score(*tried))
    both = [np.concatenate(sides) for sides in zip(learned, tried, strict=True)]
    model[best].fit(*both)
    took = time.perf_counter() - started
    frame = pd.DataFrame({"text": list(scored[0]), "category": scored[1]})
    return {**scores(model[best], frame), "seconds to train": took}


def seen(part: str) -> tuple[np.ndarray, np.ndarray]:
    """(vectors [rows, 1280] of the bundled picture network as it was published, categories) of a part of grocerystore."""
    table = pq.read_table(REAL / "grocerystore.parquet", filters=[("split", "=", part)])
    sight = sight_of(EMBEDDED)
    network, _ = load_sight(sight)
    vectors = []
    for start in range(0, len(table), 32):
        given = [decode(data, sight.picture("image")) for data in table["image"].slice(start, 32).to_pylist()]
        pixels = torch.from_numpy(np.stack(given)).float() / 255
        with torch.inference_mode():
            vectors.append(network.eval()((pixels - 0.5) / 0.5).numpy())
    return np.concatenate(vectors), np.array(table["category_path"].to_pylist())


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
    given = model.predict(scored["text"].tolist())
    took = time.perf_counter() - started
    true, found = ([path.split(" > ") for path in paths] for paths in (scored["category"], given))

    def f1(level: int, average: str) -> float:
        return float(
            f1_score(*([" > ".join(path[:level]) for path in side] for side in (true, found)), average=average)
        )

    def accuracy(level: int) -> float:
        return float(np.mean([a[:level] == b[:level] for a, b in zip(true, found, strict=True)]))

    depth = max(map(len, true + found))
    return {
        "accuracy": accuracy(depth),
        "one level up": accuracy(depth - 1),
        "weighted F1": f1(depth, "weighted"),
        "macro F1": f1(depth, "macro"),
        "mean over levels": float(np.mean([f1(level, "weighted") for level in range(1, depth + 1)])),
        "rows/s": len(scored) / took,
    }


if __name__ == "__main__":
    main()
