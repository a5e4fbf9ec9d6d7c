"""The bundle as an MLflow pyfunc model: a DataFrame of catalog columns in, categories out."""

import importlib.util
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import AnyType, Array

from cataloger.bundle import load_tokenizer, read_spec, tokenize
from cataloger.data.batching import Tokens
from cataloger.data.text import compose
from cataloger.taxonomy import SEPARATOR


class Categorizer:
    """Answers with the same code as jobs/label.py."""

    def __init__(self, folder: Path) -> None:
        # Registering a model needs this module, but not torch.
        import torch

        from cataloger.model.predictor import Bundle

        self.bundle = Bundle(folder, "cuda" if torch.cuda.is_available() else "cpu", "auto")
        self.tokenizer = load_tokenizer(folder, self.bundle.spec.max_tokens)

    def predict(self, frame: Any, params: dict[str, Any] | None = None) -> Any:
        """`category`, of a multi-label model `categories`, and `confidence` per row of a DataFrame with the model's text columns.

        Rows keep their place and their index. A row without text gets None.
        """
        import pandas as pd

        spec, rows = self.bundle.spec, len(frame)
        columns = {name: _column(frame[name]) if name in frame else pa.nulls(rows) for name in spec.text_columns}
        texts = compose(pa.table(columns), spec.text_columns, spec.max_tokens)
        given, confidence = np.full(rows, None, object), np.full(rows, None, object)
        readable = np.flatnonzero(texts.is_valid())
        if len(readable):
            found = self.bundle.predict(Tokens.from_arrow(tokenize(self.tokenizer, texts.drop_null())))
            names = np.array(spec.categories, dtype=object)
            if spec.multi_label:
                for row, one in zip(readable, np.split(names[found.sets.flat], found.sets.offsets[1:-1]), strict=True):
                    given[row] = one.tolist()
            else:
                given[readable] = names[found.labels]
            confidence[readable] = found.confidence.astype(float)
        answer = "categories" if spec.multi_label else "category"
        return pd.DataFrame({answer: given, "confidence": confidence}, index=frame.index, dtype=object)


def _column(values: Any) -> pa.Array:
    """A column of a DataFrame as a catalog would have it: of one type, or of strings where it mixes several."""
    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowException, OverflowError):
        return pa.array(map(_written, values), pa.large_string())


def _written(value: Any) -> str | None:
    """As Arrow writes a column of this type; a whole number of any size."""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return pa.array([value], from_pandas=True).cast(pa.large_string())[0].as_py()  # type: ignore[no-any-return]


def _load_pyfunc(path: str) -> Categorizer:
    """Called by MLflow with the folder that was logged."""
    return Categorizer(Path(path))


def signature(folder: Path) -> ModelSignature:
    spec = read_spec(folder)
    # Strings or numbers, as in a catalog: with a type of its own a column would take nothing else.
    columns: list[ColSpec | TensorSpec] = [ColSpec(AnyType(), name, required=False) for name in spec.text_columns]
    answer = ColSpec(Array(DataType.string), "categories") if spec.multi_label else ColSpec(DataType.string, "category")
    outputs: list[ColSpec | TensorSpec] = [answer, ColSpec(DataType.double, "confidence")]
    return ModelSignature(Schema(columns), Schema(outputs))


def example(folder: Path) -> dict[str, list[str]]:
    """A row to try the model with, by column: the name of its first category as a text."""
    spec = read_spec(folder)
    return {
        name: [spec.categories[0].split(SEPARATOR)[-1] if not number else ""]
        for number, name in enumerate(spec.text_columns)
    }


def requirements() -> list[str]:
    """What answering needs, at the versions that trained it; neither Ray nor anything else that trains."""
    packages = [
        "mlflow",
        "torch",
        "transformers",
        "tokenizers",
        "safetensors",
        "pyarrow",
        "numpy",
        "pandas",
        "pydantic",
    ]
    if importlib.util.find_spec("openvino"):
        packages.append("openvino")
    return [f"{name}=={version(name).split('+')[0]}" for name in packages]
