"""How busy every node of the cluster is while a job runs, in the `System metrics` of its MLflow run."""

import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Iterator
from functools import cache
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cataloger.infra import tracking

log = logging.getLogger(__name__)
SECONDS_BETWEEN = 10.0


class Probe:
    """Measures the node it runs on."""

    def __init__(self) -> None:
        from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
        from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
        from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
        from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

        self.monitors: list[Any] = [CPUMonitor(), DiskMonitor(), NetworkMonitor()]
        with contextlib.suppress(ImportError, RuntimeError):  # no GPU, or none that NVIDIA's library sees
            self.monitors.append(GPUMonitor())
        self.measure()  # what the CPU did is counted from the call before

    def measure(self) -> dict[str, float]:
        found: dict[str, float] = {}
        for monitor in self.monitors:
            monitor.collect_metrics()
            found |= {name: float(value) for name, value in monitor.aggregate_metrics().items()}
            monitor.clear_metrics()
        return found


@contextlib.contextmanager
def watch(run_id: str) -> Iterator[None]:
    """Log the metrics of every node to the run, every ten seconds for as long as the block runs. Needs a running Ray.

    Workers reach the driver through Ray alone: the MLflow server may listen on the driver's localhost only. Nodes may come
    and go. The names of metrics are those of MLflow, with the node's address between where there is more than one.
    """
    stop = threading.Event()
    # Of each node its name, and who measures it: this process its own, as another one would take longer to start than all of that takes.
    own, here = ray.get_runtime_context().get_node_id(), cache(Probe)
    probes: dict[str, tuple[str, Any]] = {}

    def measured_here() -> dict[str, float]:
        try:
            return here().measure()
        except Exception as error:  # of any device; from another node it would come as one of Ray's
            raise ray.exceptions.RayError(str(error)) from error

    def measure(step: int) -> None:
        """Once, on every node."""
        nodes = {node["NodeID"]: node["NodeName"] for node in ray.nodes() if node["Alive"]}
        for gone in probes.keys() - nodes.keys():
            del probes[gone]
        for number, (node, name) in enumerate(nodes.items(), 1):
            if node not in probes:
                there = NodeAffinitySchedulingStrategy(node, soft=False)
                actor = ray.remote(Probe).options(num_cpus=0, scheduling_strategy=there)
                shown = f"{name}-{number}" if name in dict(probes.values()) else name
                probes[node] = (shown, None if node == own else actor.remote())
        asked = {node: probe.measure.remote() if probe else None for node, (_, probe) in probes.items()}
        now, metrics = int(time.time() * 1000), []
        for node, answer in asked.items():
            with contextlib.suppress(ray.exceptions.RayError):  # lost meanwhile
                between = f"{probes[node][0]}/" if len(nodes) > 1 else ""
                found = ray.get(answer, timeout=SECONDS_BETWEEN) if answer else measured_here()
                metrics += [(f"system/{between}{name}", value, now, step) for name, value in found.items()]
        tracking.log_steps(run_id, metrics)

    def follow() -> None:
        for step in itertools.count():
            if stop.wait(SECONDS_BETWEEN):
                return
            measure(step)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        # A measurement that is under way ends with its probe, and one that it has begun ends after it.
        _end(probes)
        thread.join()
        _end(probes)


def _end(probes: dict[str, tuple[str, Any]]) -> None:
    for _, probe in list(probes.values()):
        if probe:
            ray.kill(probe)
