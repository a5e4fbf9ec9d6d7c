"""What travels between the processes of the stream: the model once to every node, tables as Arrow IPC bytes."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from cataloger.infra import runtime
from cataloger.spec import Spec


@dataclass(frozen=True)
class Model:
    """A bundle on its way to the cluster: `shared` is its folder in Ray's object store, known by `digest`."""

    spec: Spec
    digest: str
    shared: list[Any]  # a list, so that Ray passes the reference on instead of the bytes

    def folder(self) -> Path:
        """The bundle on this node's disk."""
        return runtime.local_copy(self.shared[0], self.digest)


def pack(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def unpack(packed: Any) -> pa.Table:
    data = packed.as_buffer() if isinstance(packed, pa.Scalar) else packed
    return pa.ipc.open_stream(data).read_all().combine_chunks()
