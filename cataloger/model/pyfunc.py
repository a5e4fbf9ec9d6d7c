"""The bundle as an MLflow pyfunc model: a DataFrame of catalog columns in, categories out."""

import importlib.util
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema, TensorSpec
from mlflow.types.schema import AnyType, Array, Object, Property

from cataloger.bundle import read_spec
from cataloger.data.given import pictures, written
from cataloger.heads.columns import columns_of
from cataloger.model.tiers import Tiers
from cataloger.spec import MANY_CATEGORIES, TAGS
from cataloger.taxonomy import SEPARATOR

# Of the pictures that are decoded at once.
MOST_PIXELS = 1 << 26
# A PNG of one white pixel, in base64.
DOT = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=="

TAG = Object(
    [
        *(Property(name, DataType.string) for name in ("name", "value", "field")),
        *(Property(name, DataType.long) for name in ("start", "end")),
        Property("confidence", DataType.double),
    ]
)


class Categorizer:
    """Answers with the same code as jobs/label.py."""

    def __init__(self, folder: Path) -> None:
        # Registering a model needs this module, but not torch; nor do words that answer alone.
        device = "cpu"
        if read_spec(folder).network:
            import torch

            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.predictor = Tiers(folder, device, "auto")
        # All that answering needs is read from the folder now: it may be gone later, and what is broken must fail here.
        nothing = pa.array([], pa.string())
        self.predictor.label(pa.table(dict.fromkeys(self.predictor.input.columns, nothing)))

    def predict(self, frame: Any, params: dict[str, Any] | None = None) -> Any:
        """`category`, or `categories` where a product has any number, and `confidence` per row of a DataFrame with the model's columns; of
        a model that gives tags, the list of them.

        Rows keep their place and their index. A row with nothing to read gets None. A picture is bytes, or the same in base64:
        nobody can have a service fetch what lies elsewhere.
        """
        import pandas as pd

        picture = self.predictor.spec.picture
        columns = {
            name: (pictures if picture and name == picture.column else _column)(frame[name])
            if name in frame
            else pa.nulls(len(frame))
            for name in self.predictor.input.columns
        }
        table, most = pa.table(columns), MOST_PIXELS // picture.size**2 if picture else len(frame)
        parts = [table.slice(start, most) for start in range(0, max(1, len(table)), max(1, most))]
        labels = pa.concat_tables([self.predictor.label(part) for part in parts])
        further = [answer.label_column for answer in self.predictor.spec.answers[1:]]
        names = [
            name for name in (self.predictor.columns.answer, "confidence", *further) if name in labels.column_names
        ]
        answers = {name: labels.column(name).to_pylist() for name in names}
        return pd.DataFrame(answers, index=frame.index, dtype=object)


def _column(values: Any) -> pa.Array:
    """A column of a DataFrame as a catalog would have it: of one type, or of strings where it mixes several."""
    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowException, OverflowError):
        return pa.array(map(written, values), pa.large_string())


def _load_pyfunc(path: str) -> Categorizer:
    """Called by MLflow with the folder that was logged."""
    return Categorizer(Path(path))


def signature(folder: Path) -> ModelSignature:
    spec = read_spec(folder)
    # Strings or numbers, as in a catalog: with a type of its own a column would take nothing else.
    names = (*spec.text_columns, *([spec.picture.column] if spec.picture else []))
    read: list[ColSpec | TensorSpec] = [ColSpec(AnyType(), name, required=False) for name in names]
    outputs: list[ColSpec | TensorSpec] = [ColSpec(_kind(spec.head), columns_of(spec).answer)]
    outputs += [ColSpec(DataType.double, "confidence")] if spec.head != TAGS else []
    outputs += [ColSpec(_kind(one.head, further=True), one.label_column) for one in spec.answers[1:]]
    return ModelSignature(Schema(read), Schema(outputs))


def _kind(head: str, further: bool = False) -> Any:
    """The type of an answer; that of a further one is an object, unless it is tags."""
    if head == TAGS:
        return Array(TAG)
    kind: Any = Array(DataType.string) if head == MANY_CATEGORIES else DataType.string
    if not further:
        return kind
    alternatives = Array(Object([Property("category", DataType.string), Property("confidence", DataType.double)]))
    numbers = Array(DataType.double)
    columns = [
        Property("confidence", DataType.double),
        Property("alternatives", alternatives),
        Property("needs_review", DataType.boolean),
    ]
    if head == MANY_CATEGORIES:
        return Object([Property("categories", kind), Property("confidences", numbers), *columns])
    trusted = Property("trusted_category", DataType.string, required=False)
    return Object([Property("category", kind), Property("level_confidences", numbers), trusted, *columns])


def example(folder: Path) -> dict[str, list[str]]:
    """A row to try the model with, by column: the name of its first category as a text, a dot as a picture."""
    spec = read_spec(folder)
    row = {
        name: [spec.categories[0].split(SEPARATOR)[-1] if not number else ""]
        for number, name in enumerate(spec.text_columns)
    }
    return row | ({spec.picture.column: [DOT]} if spec.picture else {})


def requirements(folder: Path) -> list[str]:
    """What answering needs, at the versions that trained it; neither Ray nor anything else that trains."""
    spec = read_spec(folder)
    network = spec.network
    packages = [
        "mlflow",
        *(["torch", "transformers"] if network else []),
        "tokenizers",
        "safetensors",
        "pyarrow",
        "numpy",
        "scipy",
        "pandas",
        "pydantic",
    ]
    packages += ["pillow", "requests"] if spec.picture else []
    if spec.picture and json.loads((folder / "config.json").read_text())["picture"]["model_type"] == "timm_wrapper":
        packages += ["timm", "torchvision"]
    if network and importlib.util.find_spec("openvino"):
        packages.append("openvino")
    return [f"{name}=={version(name).split('+')[0]}" for name in packages]
