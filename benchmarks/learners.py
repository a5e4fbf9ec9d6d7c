"""How the peers of peers.py learn: each tries a few settings on validation rows of its own, and keeps the best."""

import asyncio
import itertools
import logging
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from baseline import words_and_characters
from cataloger.model.pretrained import base_model_folder
from yardsticks import seconds

Answer = Callable[[Any], Sequence[str]]
# Of texts or their vectors, and their categories; gives what answers the like.
Fit = Callable[[Any, np.ndarray], Answer]
HEADS = {
    "logistic regression, C=10": LogisticRegression(C=10, max_iter=300),
    "logistic regression, C=100": LogisticRegression(C=100, max_iter=300),
    "LinearSVC, C=0.3": LinearSVC(C=0.3, random_state=0),
}


@dataclass(frozen=True)
class Way:
    """A peer that has learned."""

    predict: Answer
    settings: str
    took: float | None = None
    forks: bool = False
    """Whether it uses one core alone, so that a process for each is worth a try."""
    stop: Callable[[], object] = field(default=lambda: None)


def choose(fits: dict[str, Fit], given: np.ndarray, labels: np.ndarray) -> tuple[Answer, str]:
    """(what answers, its name): the one that is right most often on a tenth that it did not learn from, then learned from all."""
    tried = np.random.default_rng(0).random(len(labels)) < 0.1
    found = {}
    for name, fit in fits.items():
        found[name] = float(np.mean(fit(given[~tried], labels[~tried])(given[tried]) == labels[tried]))
        print(f"{name}: {found[name]:.4f} of the validation rows")
    best = max(found, key=lambda name: found[name])
    return fits[best](given, labels), best


def by_estimator(model: Any) -> Fit:
    return lambda given, labels: clone(model).fit(given, labels).predict


def by_scikit_learn(texts: np.ndarray, labels: np.ndarray) -> Way:
    started = time.perf_counter()
    fits = {f"TF-IDF, LinearSVC, C={C}": by_estimator(words_and_characters(C)) for C in (0.3, 1.0)}
    return Way(*choose(fits, texts, labels), time.perf_counter() - started, forks=True)


def by_fasttext(texts: np.ndarray, labels: np.ndarray) -> Way:
    started = time.perf_counter()
    options = itertools.product((0.3, 1.0), (10, 30, 60), (50, 100))
    fits = {f"lr {lr}, {epoch} epochs, dim {dim}": fasttext_with(lr, epoch, dim) for lr, epoch, dim in options}
    return Way(*choose(fits, texts, labels), time.perf_counter() - started, forks=True)


def fasttext_with(lr: float, epoch: int, dim: int) -> Fit:
    import fasttext

    def fit(texts: np.ndarray, labels: np.ndarray) -> Answer:
        names, numbers = np.unique(labels.astype(str), return_inverse=True)
        with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as file:
            file.writelines(f"__label__{n} {text.lower()}\n" for n, text in zip(numbers, texts, strict=True))
            file.flush()
            sizes = {"dim": dim, "wordNgrams": 2, "minn": 3, "maxn": 6}
            threads = torch.get_num_threads()
            model = fasttext.train_supervised(file.name, lr=lr, epoch=epoch, thread=threads, verbose=0, **sizes)

        def answer(texts: Sequence[str]) -> Sequence[str]:
            found, _ = model.predict([text.lower() for text in texts])
            return names[[int(label.removeprefix("__label__")) for (label,) in found]]

        return answer

    return fit


def by_model2vec(texts: np.ndarray, labels: np.ndarray) -> Way:
    """Vectors of tokens, made of MiniLM's: as they are, below a linear head, or learned further by its own trainer, which sets a
    tenth aside to know when to stop."""
    from model2vec.distill import distill
    from model2vec.train import StaticModelForClassification

    started = time.perf_counter()
    static = distill(str(base_model_folder("minilm")), device="cpu")

    def upon(head: Fit) -> Fit:
        def fit(texts: np.ndarray, labels: np.ndarray) -> Answer:
            found = head(static.encode(list(texts)), labels)
            return lambda texts: found(static.encode(list(texts)))

        return fit

    def further(layers: int, rate: float) -> Fit:
        def fit(texts: np.ndarray, labels: np.ndarray) -> Answer:
            model = StaticModelForClassification.from_static_model(model=static, n_layers=layers)
            model.fit(list(texts), list(labels), learning_rate=rate, max_epochs=50, device="cpu")
            pipeline = model.to_pipeline()
            return lambda texts: pipeline.predict(list(texts))

        return fit

    fits = {name: upon(by_estimator(head)) for name, head in HEADS.items()}
    for layers, rate in ((0, 1e-2), (1, 1e-3), (1, 3e-3)):
        fits[f"own trainer, {layers} hidden layers, lr {rate}"] = further(layers, rate)
    return Way(*choose(fits, texts, labels), time.perf_counter() - started, forks=True)


def by_sentence_transformers(texts: np.ndarray, labels: np.ndarray, some: list[str]) -> Way:
    """A linear head on MiniLM's vectors, by torch: optimum-intel and optimum-onnx, which its OpenVINO and ONNX need, ask for an older
    transformers and cannot be imported beside ours."""
    # Imported here: gpu.py has no use for it.
    from sentence_transformers import SentenceTransformer

    started = time.perf_counter()
    encoders: dict[str, Answer] = {}
    for dtype, size in itertools.product((torch.float32, torch.bfloat16), (32, 128)):
        model = SentenceTransformer(str(base_model_folder("minilm")), device="cpu", model_kwargs={"dtype": dtype})
        encoders[f"{dtype}, batches of {size}"] = partial(model.encode, batch_size=size, show_progress_bar=False)
    rates = {name: speed(predict, some) for name, predict in encoders.items()}
    how = max(rates, key=lambda name: rates[name])
    encode: Any = encoders[how]
    head, name = choose({name: by_estimator(head) for name, head in HEADS.items()}, encode(list(texts)), labels)
    took = time.perf_counter() - started
    return Way(lambda texts: head(encode(list(texts))), f"{name}; {how}", took)


def by_infinity(bundle: Path, some: list[str], device: str = "cpu", sizes: Sequence[int] = (32, 128)) -> Way:
    """cataloger's own network, in its engine, without the way over HTTP. It asks for numpy 1 and sentence-transformers 3, and runs on ours."""
    from infinity_emb import AsyncEmbeddingEngine, EngineArgs

    logging.getLogger("infinity_emb").setLevel(logging.WARNING)
    loop = asyncio.new_event_loop()

    def engine_with(dtype: str, size: int) -> tuple[Answer, Any]:
        engine = AsyncEmbeddingEngine.from_args(
            EngineArgs(
                model_name_or_path=str(bundle),
                engine="torch",
                device=device,
                dtype=dtype,
                batch_size=size,
                bettertransformer=False,
                trust_remote_code=True,
                model_warmup=False,
            )
        )
        loop.run_until_complete(engine.astart())

        def answer(texts: Sequence[str]) -> Sequence[str]:
            found = []
            for start in range(0, len(texts), 5_000):  # it answers with the scores of all categories
                given, _ = loop.run_until_complete(engine.classify(sentences=list(texts[start : start + 5_000])))
                found += [max(each, key=lambda one: one["score"])["label"] for each in given]
            return found

        return answer, engine

    options = {f"{dtype}, batches of {size}": (dtype, size) for dtype in ("float32", "bfloat16") for size in sizes}
    rates = {}
    for name, option in options.items():
        answer, engine = engine_with(*option)
        rates[name] = speed(answer, some)
        loop.run_until_complete(engine.astop())
    how = max(rates, key=lambda name: rates[name])
    answer, engine = engine_with(*options[how])
    return Way(answer, how, stop=lambda: loop.run_until_complete(engine.astop()))


def speed(predict: Answer, titles: list[str]) -> float:
    """Titles/s, after some of them have warmed it up."""
    predict(titles[:1_000])
    return len(titles) / seconds(lambda: predict(titles))
