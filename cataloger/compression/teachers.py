"""What teachers say of a catalog: asked by the labelling job, whose parts stay where they are, and read back as lessons."""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from cataloger.bundle import digest
from cataloger.config import CompressConfig, LabelConfig
from cataloger.errors import PublishError
from cataloger.heads.arrays import FloatArray
from cataloger.heads.columns import columns_of
from cataloger.infra import deciding
from cataloger.infra.storage import Location
from cataloger.labeling.job import label
from cataloger.model.registry import ModelSource
from cataloger.publishing import snapshot
from cataloger.spec import Spec
from cataloger.training import lessons
from cataloger.training.lessons import Lessons

# How many categories beside the most probable one a student is told of.
ALTERNATIVES = 15


def ask(source: ModelSource, spec: Spec, config: CompressConfig, storage: Location) -> Lessons:
    """The answers of one teacher to all rows, by words and network together; those that it gave before are not asked for again."""
    output = storage / f"answers-{digest(source.folder)}"
    asked = LabelConfig(
        catalog=config.catalog,
        output=output.uri if not output.is_local else output.path,
        model=(str(source.folder),),
        id_column=config.id_column,
        text_columns=config.text_columns,
        alternatives=min(ALTERNATIVES, len(spec.categories) - 1),
        tiers="off",
        use_gpu=config.use_gpu,
        # Nobody but the student reads them: what is new, moved or unreadable holds nothing back.
        max_reject_fraction=1.0,
        max_missing_fraction=1.0,
        max_changed_fraction=1.0,
        publish_anyway=True,
        experiment=config.experiment,
    )
    try:
        done = label(asked)
    except (
        PublishError
    ):  # another student of this teacher, made at the same time, was quicker: its answers are there now
        done = label(asked)
    return read(snapshot.run_folder(output, done.run), spec)


def read(run: Location, spec: Spec) -> Lessons:
    """The labels of a run, by what was read."""
    columns, alternatives = columns_of(spec), min(ALTERNATIVES, len(spec.categories) - 1)
    keys, labels, shares = [], [], []
    wanted = ["text_hash", *columns.kept]
    for info in run.files(recursive=False):
        if not info.base_name.startswith("part-"):
            continue
        with run.filesystem.open_input_file(info.path) as file:
            table = pq.read_table(file, columns=wanted)
        own = lessons.keys(table.column("text_hash").combine_chunks())
        distinct, first = np.unique(own, return_index=True)
        answers = columns.from_labels(table.take(pa.array(first)), alternatives)
        keys.append(distinct)
        found = _side_by_side(answers)
        labels.append(found[0])
        shares.append(found[1])
    width = max(array.shape[1] for array in labels)
    joined = np.concatenate(keys)
    distinct, first = np.unique(joined, return_index=True)
    return Lessons(distinct, _stacked(labels, width)[first], _stacked(shares, width)[first])


def digest_of(teachers: Sequence[ModelSource], what: str, text_columns: Sequence[str]) -> str:
    """16 hex digits of what something is made from: teachers, and the code that makes it."""
    code = [deciding.digest(), deciding.digest_of_first_weights()]
    told = [what, ALTERNATIVES, list(text_columns), *code, *(digest(one.folder) for one in teachers)]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def _side_by_side(answers: pa.Table) -> tuple[npt.NDArray[np.int32], FloatArray]:
    """(labels, probabilities), each [rows, K]: those that were given, and those beside them; 0 where a row has fewer."""
    one = "label" in answers.column_names
    given = ("label", "confidence") if one else ("labels", "probabilities")
    others = (_matrix(answers.column(name)) for name in ("alternatives", "alternative_confidence"))
    labels, shares = (
        np.concatenate(
            [answers.column(own).to_numpy()[:, None] if one else _matrix(answers.column(own)), other], axis=1
        )
        for own, other in zip(given, others, strict=True)
    )
    return labels.astype(np.int32), shares.astype(np.float32)


def _matrix(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    lists = column.combine_chunks()
    lengths = np.diff(lists.offsets.to_numpy())
    width = int(lengths.max(initial=0))
    found = np.zeros((len(lists), width), np.float64)
    found[np.arange(width) < lengths[:, None]] = lists.flatten().to_numpy(zero_copy_only=False)
    return found


def _stacked(arrays: list[Any], width: int) -> Any:
    return np.concatenate([np.pad(array, ((0, 0), (0, width - array.shape[1]))) for array in arrays])
