"""Queues as Label Studio, Argilla and tables have them, and the answers that come back from there."""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol
from xml.etree import ElementTree as xml

import pyarrow as pa
import pyarrow.parquet as pq

from cataloger.curation.queue import Question, Queue
from cataloger.errors import CatalogError
from cataloger.infra.storage import Location
from cataloger.taxonomy import SEPARATOR

# A list to choose from that Argilla's server takes; of larger trees the path is written.
MOST_OPTIONS = 500
HELP = (
    "Which category is this product in? The model's answer is filled in: keep it, or choose the right one. An inner category is fine "
    "where nothing tells more. Skip what you cannot tell."
)


@dataclass(frozen=True)
class Answer:
    """What a person said of a product; no category at all is an answer where a product may have any number. `when` is ISO 8601."""

    id: str
    queue: str
    paths: tuple[str, ...]
    who: str
    when: str
    note: str


class Format(Protocol):
    def write(self, queue: Queue, asked: Sequence[Question], folder: Location) -> None: ...

    def knows(self, found: Any) -> bool:
        """Whether it wrote such JSON."""

    def answers(self, found: Any, queue: Queue) -> Iterator[Answer]:
        """Those that were given; what was skipped is none. Raises KeyError, TypeError, ValueError for what has another form."""


class LabelStudio:
    """`tasks.json` to import, `config.xml` as the labeling interface; what comes back is the export as JSON."""

    def write(self, queue: Queue, asked: Sequence[Question], folder: Location) -> None:
        pictures = any(question.picture for question in asked)
        tasks = [self._task(queue, question, pictures) for question in asked]
        (folder / "config.xml").write(self.interface(queue, pictures).encode())
        (folder / "tasks.json").write(json.dumps(tasks, ensure_ascii=False, indent=1).encode())

    @staticmethod
    def interface(queue: Queue, pictures: bool) -> str:
        """The tree is a Taxonomy, of which a person sees one level at a time, and which can be searched."""
        view = xml.Element("View")
        xml.SubElement(view, "Header", value=HELP)
        xml.SubElement(view, "Text", name="product", value="$text")
        if pictures:
            xml.SubElement(view, "Image", name="picture", value="$image")
        xml.SubElement(view, "Header", value="$said", size="5")
        more = {} if queue.lists else {"maxUsages": "1"}
        tree = xml.SubElement(
            view,
            "Taxonomy",
            {
                "name": "category",
                "toName": "product",
                "leafsOnly": "false",
                "showFullPath": "true",
                "pathSeparator": SEPARATOR,
                **more,
            },
        )
        nodes: dict[str, xml.Element] = {}
        for path in queue.categories:
            parent, steps = tree, path.split(SEPARATOR)
            for depth, step in enumerate(steps, 1):
                name = SEPARATOR.join(steps[:depth])
                if name not in nodes:
                    nodes[name] = xml.SubElement(parent, "Choice", value=step)
                parent = nodes[name]
        xml.SubElement(
            view, "TextArea", name="note", toName="product", placeholder="a note, if you like", required="false"
        )
        xml.indent(view)
        return xml.tostring(view, "unicode")

    @staticmethod
    def _task(queue: Queue, question: Question, pictures: bool) -> dict[str, Any]:
        data: dict[str, Any] = {"id": question.id, "queue": queue.queue, "text": question.text, "said": _said(question)}
        # All tasks need what the interface shows.
        data |= {"image": question.picture or ""} if pictures else {}
        value = {"taxonomy": [path.split(SEPARATOR) for path, _ in question.categories]}
        region = {"from_name": "category", "to_name": "product", "type": "taxonomy", "value": value}
        prediction = {
            "model_version": queue.model,
            "score": question.confidence,
            "result": [region] if question.categories else [],
        }
        return {"data": data, "predictions": [prediction]}

    def knows(self, found: Any) -> bool:
        return isinstance(found, list) and all(isinstance(task, dict) and "data" in task for task in found)

    def answers(self, found: Any, queue: Queue) -> Iterator[Answer]:
        for task in found:
            data = task["data"]
            for given in task.get("annotations", ()):
                if given.get("was_cancelled"):
                    continue
                regions = {region["from_name"]: region["value"] for region in given["result"]}
                paths = regions.get("category", {}).get("taxonomy", [])
                if not paths and not queue.lists:
                    continue
                yield Answer(
                    id=str(data["id"]),
                    queue=str(data["queue"]),
                    paths=tuple(SEPARATOR.join(map(str, path)) for path in paths),
                    who=_who(given.get("completed_by")),
                    when=str(given.get("updated_at") or given.get("created_at") or ""),
                    note=" ".join(regions.get("note", {}).get("text", ())),
                )


class Argilla:
    """A folder for `rg.Dataset.from_disk`; what comes back is the `records.json` of `dataset.to_disk`."""

    def write(self, queue: Queue, asked: Sequence[Question], folder: Location) -> None:
        pictures = any(question.picture for question in asked)
        about = {"name": f"review-{queue.queue}", "guidelines": self._guidelines(queue), "allow_extra_metadata": True}
        (folder / ".argilla/dataset.json").write(json.dumps(about, ensure_ascii=False).encode())
        (folder / ".argilla/settings.json").write(
            json.dumps(self._settings(queue, pictures), ensure_ascii=False).encode()
        )
        records = [self._record(queue, question) for question in asked]
        (folder / "records.json").write(json.dumps(records, ensure_ascii=False, indent=1).encode())

    @staticmethod
    def _guidelines(queue: Queue) -> str:
        if len(queue.categories) <= MOST_OPTIONS:
            return HELP
        return f"{HELP} Write its whole path{', each on a line of its own' if queue.lists else ''}, such as {queue.categories[0]}."

    @staticmethod
    def _settings(queue: Queue, pictures: bool) -> dict[str, Any]:
        def field(name: str, settings: dict[str, Any], required: bool) -> dict[str, Any]:
            return {"name": name, "title": name, "required": required, "settings": settings}

        fields = [field("product", {"type": "text"}, True), field("said", {"type": "text"}, False)]
        fields += [field("picture", {"type": "image"}, False)] if pictures else []
        options = [{"value": path, "text": path} for path in queue.categories]
        kind: dict[str, Any] = {"type": "text"}
        if len(options) <= MOST_OPTIONS:
            kind = {"type": "multi_label_selection" if queue.lists else "label_selection", "options": options}
        questions = [field("category", kind, True), field("note", {"type": "text"}, False)]
        return {
            "guidelines": Argilla._guidelines(queue),
            "fields": fields,
            "questions": questions,
            "vectors": [],
            "metadata": [{"name": "queue", "title": "queue", "settings": {"type": "terms"}}],
            "allow_extra_metadata": True,
            "distribution": {"strategy": "overlap", "min_submitted": 1},
        }

    @staticmethod
    def _record(queue: Queue, question: Question) -> dict[str, Any]:
        fields = {"product": question.text, "said": _said(question)}
        fields |= {"picture": question.picture} if question.picture else {}
        paths: Any = [path for path, _ in question.categories]
        if not queue.lists:
            (paths,) = paths
        elif len(queue.categories) > MOST_OPTIONS:
            paths = "\n".join(paths)
        suggestion = {"value": paths, "score": question.confidence, "agent": queue.model}
        if queue.lists and len(queue.categories) <= MOST_OPTIONS:
            suggestion["score"] = [score for _, score in question.categories]
        return {
            "id": question.id,
            "fields": fields,
            "metadata": {"queue": queue.queue, "alike": question.alike, "weight": question.weight},
            "suggestions": {"category": suggestion} if paths else {},
            "responses": {},
            "vectors": {},
        }

    def knows(self, found: Any) -> bool:
        return isinstance(found, list) and all(isinstance(record, dict) and "fields" in record for record in found)

    def answers(self, found: Any, queue: Queue) -> Iterator[Answer]:
        for record in found:
            if record.get("status") != "completed":
                continue  # drafts, and what was discarded, stand there as well
            responses = record.get("responses") or {}
            notes = {str(note["user_id"]): str(note["value"]) for note in responses.get("note", ())}
            for given in responses.get("category", ()):
                value, who = given["value"], str(given["user_id"])
                if value is None:
                    continue
                paths = value if isinstance(value, list) else [line for line in str(value).splitlines() if line.strip()]
                yield Answer(
                    str(record["id"]),
                    str(record["metadata"]["queue"]),
                    tuple(map(str, paths)),
                    who,
                    "",
                    notes.get(who, ""),
                )


class Table:
    """`queue.parquet`, whose column `answer` people fill; `who`, `when` and `note` are for them, too."""

    def write(self, queue: Queue, asked: Sequence[Question], folder: Location) -> None:
        path = pa.list_(pa.string()) if queue.lists else pa.string()
        said = [[path for path, _ in question.categories] for question in asked]
        pairs = pa.list_(pa.struct([("category", pa.string()), ("confidence", pa.float32())]))
        nothing = pa.nulls(len(asked), pa.string())
        table = pa.table(
            {
                "id": [question.id for question in asked],
                "queue": [queue.queue] * len(asked),
                "text": [question.text for question in asked],
                "image": pa.array([question.picture for question in asked], pa.string()),
                "category": pa.array(said if queue.lists else [one[0] for one in said], path),
                "confidence": pa.array([question.confidence for question in asked], pa.float32()),
                "alternatives": pa.array(
                    [
                        [{"category": one, "confidence": sure} for one, sure in question.alternatives]
                        for question in asked
                    ],
                    pairs,
                ),
                "alike": [question.alike for question in asked],
                "weight": [question.weight for question in asked],
                "answer": pa.nulls(len(asked), path),
                "who": nothing,
                "when": nothing,
                "note": nothing,
            }
        )
        sink = io.BytesIO()
        pq.write_table(table, sink)
        (folder / "queue.parquet").write(sink.getvalue())

    def knows(self, found: Any) -> bool:
        return isinstance(found, pa.Table)

    def answers(self, found: Any, queue: Queue) -> Iterator[Answer]:
        for row in found.to_pylist():
            value = row["answer"]
            if value is None or value == "":
                continue
            paths = value if isinstance(value, list) else [value]
            about = (str(row.get(name)) if row.get(name) is not None else "" for name in ("who", "when", "note"))
            yield Answer(str(row["id"]), str(row["queue"]), tuple(map(str, paths)), *about)


FORMATS: Mapping[str, Format] = {"labelstudio": LabelStudio(), "argilla": Argilla(), "parquet": Table()}


def read_answers(location: Location, queue: Queue) -> list[Answer]:
    """What a tool wrote, by what is in the file; of a folder its `records.json`. Raises CatalogError, StorageError."""
    where = f"--answers {location}"
    if not location.info().is_file and (location / "records.json").exists():
        location = location / "records.json"
    data = location.read()
    try:
        found = pq.read_table(pa.BufferReader(data)) if data[:4] == b"PAR1" else json.loads(data)
    except (pa.ArrowException, ValueError) as error:
        raise CatalogError(f"{where}: is neither Parquet nor JSON: {str(error).splitlines()[0]}") from error
    kind = next((one for one in FORMATS.values() if one.knows(found)), None)
    try:
        if kind is None:
            raise ValueError("a list of tasks, or of records")
        return list(kind.answers(found, queue))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CatalogError(
            f"{where}: has not the form of a queue's answers ({type(error).__name__}: {error}); export from Label Studio as JSON, from Argilla "
            "with dataset.to_disk, or fill the column `answer` of queue.parquet"
        ) from error


def _said(question: Question) -> str:
    """What the model says, in words."""
    every = [*question.categories, *question.alternatives]
    said = "The model says: " + ("; or ".join(f"{path} ({score:.0%})" for path, score in every) or "nothing")
    return said + (f"; {question.alike:,} products have this text" if question.alike > 1 else "")


def _who(completed_by: Any) -> str:
    """Label Studio says a number, or more of a person."""
    if isinstance(completed_by, dict):
        return str(completed_by.get("email") or completed_by.get("id") or "")
    return "" if completed_by is None else str(completed_by)
