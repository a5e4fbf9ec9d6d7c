"""Tables for tests, and what their packages do not write themselves: deletion vectors, files of deleted positions."""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyroaring import BitMap

PRODUCTS = pa.table(
    {
        "id": [f"p{i}" for i in range(100)],
        "title": [f"green tea number {i}" if i % 2 else f"leather boots {i}" for i in range(100)],
        "price": [float(i) for i in range(100)],
        "lang": ["en", "en", "en", "d e/ü"] * 25,
        "category_path": ["Food > Tea" if i % 2 else "Shoes > Boots" for i in range(100)],
    }
)
ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"


def commit(table: Path, actions: Sequence[Mapping[str, Any]]) -> None:
    """One more entry in a Delta table's log, as any writer of the protocol would leave it."""
    number = len(list((table / "_delta_log").glob("*.json")))
    (table / "_delta_log" / f"{number:020}.json").write_text("\n".join(map(json.dumps, actions)))


def added(table: Path) -> list[dict[str, Any]]:
    """The `add` actions of a Delta table's log."""
    lines = [line for log in sorted((table / "_delta_log").glob("*.json")) for line in log.read_text().splitlines()]
    return [entry["add"] for entry in map(json.loads, lines) if "add" in entry]


def delete_by_vector(table: Path, add: Mapping[str, Any], rows: Sequence[int]) -> None:
    """Delete rows of a file as Spark does it: https://github.com/delta-io/delta/blob/master/PROTOCOL.md#deletion-vectors."""
    data = struct.pack("<iqi", 1681511377, 1, 0) + BitMap(rows).serialize()
    vector = {"storageType": "i", "pathOrInlineDv": z85(data), "sizeInBytes": len(data), "cardinality": len(rows)}
    features = ["deletionVectors"]
    protocol = {"minReaderVersion": 3, "minWriterVersion": 7, "readerFeatures": features, "writerFeatures": features}
    gone = {"path": add["path"], "deletionTimestamp": add["modificationTime"], "dataChange": True}
    gone |= {"partitionValues": add["partitionValues"], "size": add["size"]}
    commit(table, [{"protocol": protocol}, {"remove": gone}, {"add": {**add, "deletionVector": vector}}])


def z85(data: bytes) -> str:
    """https://rfc.zeromq.org/spec/32"""
    data += b"\0" * (-len(data) % 4)
    found = ""
    for start in range(0, len(data), 4):
        value = int.from_bytes(data[start : start + 4], "big")
        found += "".join(ALPHABET[value // 85**power % 85] for power in (4, 3, 2, 1, 0))
    return found


def rename_in_delta(table: Path, column: str, new: str) -> None:
    """Name a column anew without writing its files again: column mapping, by name."""
    lines = [line for log in sorted((table / "_delta_log").glob("*.json")) for line in log.read_text().splitlines()]
    about = next(entry["metaData"] for entry in map(json.loads, lines) if "metaData" in entry)
    schema = json.loads(about["schemaString"])
    for number, field in enumerate(schema["fields"], 1):
        field["metadata"] = {
            "delta.columnMapping.id": number,
            "delta.columnMapping.physicalName": field["name"],
        }
        field["name"] = new if field["name"] == column else field["name"]
    about["schemaString"] = json.dumps(schema)
    about["configuration"] = {"delta.columnMapping.mode": "name", "delta.columnMapping.maxColumnId": str(number)}
    commit(table, [{"protocol": {"minReaderVersion": 2, "minWriterVersion": 5}}, {"metaData": about}])


def delete_by_position(table: Any, file: str, rows: Sequence[int]) -> None:
    """Delete rows of an Iceberg data file by a file of positions, as Spark and Flink do; pyiceberg writes manifests of data alone."""
    from unittest.mock import patch

    from pyiceberg.manifest import DataFile, DataFileContent, FileFormat, ManifestContent, ManifestWriterV2

    where = f"{table.location()}/data/deletes-{rows[0]}.parquet"
    local = Path(where.removeprefix("file://"))
    pq.write_table(pa.table({"file_path": [file] * len(rows), "pos": pa.array(rows, pa.int64())}), local)
    of = next(task.file for task in table.scan().plan_files() if task.file.file_path == file)
    about = DataFile.from_args(
        content=DataFileContent.POSITION_DELETES, file_path=where, file_format=FileFormat.PARQUET,
        partition=of.partition, record_count=len(rows), file_size_in_bytes=local.stat().st_size,
        column_sizes={}, value_counts={}, null_value_counts={}, nan_value_counts={}, lower_bounds={}, upper_bounds={},
    )  # fmt: skip
    about.spec_id = of.spec_id
    meta = property(lambda self: {**WRITTEN(self), "content": "deletes"})
    WRITTEN = ManifestWriterV2._meta.fget
    with (
        patch.object(ManifestWriterV2, "content", lambda self: ManifestContent.DELETES),
        patch.object(ManifestWriterV2, "_meta", meta),
        table.transaction() as transaction,
        transaction.update_snapshot().fast_append() as snapshot,
    ):
        snapshot.append_data_file(about)
