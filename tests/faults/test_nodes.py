"""Two nodes that share no disk: each has a mount namespace, in which the driver's folder is an empty one of its own."""

import contextlib
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_kills import NOTICED_SOON

from cataloger.infra.storage import locate
from conftest import ROOT, on_ray
from servers import BIN, free_port, kill_with_descendants, mlflow_server

pytestmark = [pytest.mark.faults, pytest.mark.slow]
ROWS = 60_000


def can_unshare() -> bool:
    done = subprocess.run(
        ["unshare", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
    )
    return done.returncode == 0


@contextlib.contextmanager
def node(address: str, hidden: Path, name: str) -> Iterator["subprocess.Popen[bytes]"]:
    """A raylet, and all that it starts, for which nothing of the folder `hidden` is there."""
    own = hidden / name
    start = [str(BIN / "ray"), "start", f"--address={address}", "--num-cpus=2", "--block", "--disable-usage-stats"]
    start += [f"--dashboard-agent-listen-port={free_port()}"]
    script = f"mount -t tmpfs none {shlex.quote(str(hidden))} && mkdir {shlex.quote(str(own))} && "
    script += f"cd {shlex.quote(str(own))} && exec {shlex.join(start)}"
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", script],
        env=on_ray(address),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            kill_with_descendants(process)


@pytest.mark.timeout(1200)
@pytest.mark.skipif(not can_unshare(), reason="needs the right to make a mount namespace, as root has it")
def test_train_and_label_on_nodes_that_share_s3_alone(s3: str, working_folder: Path) -> None:
    from ray.cluster_utils import Cluster

    upload_catalogs(s3)
    cluster = Cluster()
    try:
        cluster.add_node(
            num_cpus=0, include_dashboard=False, dashboard_agent_listen_port=free_port(), _system_config=NOTICED_SOON
        )
        with contextlib.ExitStack() as stack:
            mlflow, _ = stack.enter_context(mlflow_server(working_folder / "mlflow"))
            # One after the other: on one machine, two that start at once would take the same name for a socket.
            stack.enter_context(node(cluster.address, working_folder, "one"))
            wait_for_nodes(cluster.address, 2)
            two = stack.enter_context(node(cluster.address, working_folder, "two"))
            wait_for_nodes(cluster.address, 3)
            environment = on_ray(cluster.address, MLFLOW_TRACKING_URI=mlflow)
            code, err = run(
                environment, "train", "--catalog", f"{s3}/nodes/labelled", "--text-columns", "title", "--epochs", "1",
                "--max-tokens", "8", "--fine-tune", "head", "--num-workers", "2", "--storage", f"{s3}/nodes/checkpoints",
                "--model-name", "of-two-nodes",
            )  # fmt: skip
            assert code == 0, err
            model = ("--model", "models:/of-two-nodes@champion", "--catalog", f"{s3}/nodes/catalog")
            code, err = run(environment, "label", *model, "--output", "labels")
            assert code == 2, err
            assert "labels" in err, "a folder of one node is none of the other's"
            driver = started(environment, "label", *model, "--output", f"{s3}/nodes/labels")
            labels = locate(f"{s3}/nodes/labels")
            while not any("part-" in info.path for info in labels.files()):
                assert driver.poll() is None, driver.communicate()[1]
                time.sleep(0.01)
            kill_with_descendants(two)
            _, err = driver.communicate(timeout=300)
            assert driver.returncode == 0, err
            code, err = run(environment, "verify", "--output", f"{s3}/nodes/labels")
            assert code == 0, err
    finally:
        cluster.shutdown()
    pointer = json.loads((labels / "_latest.json").read())
    manifest = json.loads((labels / pointer["manifest"]).read())
    assert (manifest["rows"], manifest["labelled"]) == (ROWS, ROWS)


def upload_catalogs(s3: str) -> None:
    titles = [f"product {i} of {i % 97}" for i in range(ROWS)]
    catalogs = {
        "catalog": pa.table({"id": range(ROWS), "title": titles}),
        "labelled": pa.table(
            {
                "id": range(600),
                "title": [f"{'green tea' if i % 2 else 'leather boots'} {i}" for i in range(600)],
                "category_path": ["Food > Tea" if i % 2 else "Shoes > Boots" for i in range(600)],
            }
        ),
    }
    for name, table in catalogs.items():
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, row_group_size=10_000)
        (locate(f"{s3}/nodes/{name}") / "part.parquet").write(sink.getvalue())


def started(environment: dict[str, str], job: str, *flags: str) -> "subprocess.Popen[str]":
    command = [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *flags]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def run(environment: dict[str, str], job: str, *flags: str) -> tuple[int, str]:
    process = started(environment, job, *flags)
    _, err = process.communicate(timeout=400)
    return process.returncode, err


def wait_for_nodes(address: str, count: int) -> None:
    """By a process of its own: this one stays out of the cluster."""
    look = "import ray, sys; ray.init(logging_level='ERROR'); sys.exit(sum(n['Alive'] for n in ray.nodes()) != int(sys.argv[1]))"
    deadline = time.monotonic() + 120
    while subprocess.run(
        [sys.executable, "-c", look, str(count)], env=on_ray(address), capture_output=True, check=False
    ).returncode:
        assert time.monotonic() < deadline, "the nodes have not come"
    assert os.listdir(), "what they cannot see is there"
