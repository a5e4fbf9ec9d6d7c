import subprocess
import sys
import textwrap

import pytest

from conftest import free_of_ray

TWO_NODES = """
import sys, time
import mlflow, ray
from ray.cluster_utils import Cluster
from cataloger.infra import tracking, vitals
from cataloger.config import EvaluateConfig

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
second = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
cluster.wait_for_nodes()
vitals.SECONDS_BETWEEN = 0.5
tracking.connect()
with tracking.run("evaluate", "busy", EvaluateConfig(catalog="none", experiment="vitals"), None, {}) as run_id, vitals.watch(run_id):
    def points():
        found = mlflow.get_run(run_id).data.metrics
        return {name: len(mlflow.MlflowClient().get_metric_history(run_id, name)) for name in found}
    def measured():
        found = points()
        return sum("/cpu" in name for name in found) == 2 and min(found.values()) >= 3
    end = time.time() + 60
    while not measured() and time.time() < end:
        time.sleep(0.5)
    two = points()
    cluster.remove_node(second)
    end = time.time() + 60
    while not any(name.startswith("system/cpu") for name in points()) and time.time() < end:
        time.sleep(0.5)
    one = points()
ray.shutdown()
cluster.shutdown()
assert mlflow.get_run(run_id).info.status == "FINISHED"
print(sorted(two), sorted(set(one) - set(two)), min(two.values()))
"""


@pytest.mark.faults
def test_every_node_is_measured_and_a_lost_one_costs_its_figures_only(tmp_path) -> None:  # type: ignore[no-untyped-def]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(TWO_NODES)],
        env=free_of_ray(),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    shown = done.stdout.strip().splitlines()[-1]
    assert shown.count("/cpu_utilization_percentage'") == 3, "of two nodes, then of the one that is left"
    assert "'system/cpu_utilization_percentage'" in shown
    assert shown.count("/system_memory_usage_megabytes'") == 3
    assert int(shown.split()[-1]) >= 3
