"""What a service counts, for Prometheus: Ray gathers it from all replicas of a node, and every replica can say it for all nodes."""

import contextlib

import ray
import requests
from ray.util.metrics import Counter, Gauge, Histogram

PREFIX = "cataloger_"
SECONDS = [0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0]
ROWS = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0]


class Measures:
    """Of one replica."""

    def __init__(self) -> None:
        self._requests = Counter(f"{PREFIX}requests", "Requests by path and HTTP status.", ("path", "status"))
        self._seconds = Histogram(f"{PREFIX}request_seconds", "From the request to its answer.", SECONDS, ("path",))
        self._products = Counter(f"{PREFIX}products", "Products that were answered.")
        self._batch = Histogram(f"{PREFIX}batch_products", "Products that were answered at the same time.", ROWS)
        self._version = Gauge(f"{PREFIX}model_version", "The registered version that answers.", ("model",))

    def answered(self, path: str, status: int, seconds: float) -> None:
        self._requests.inc(1, {"path": path, "status": str(status)})
        self._seconds.observe(seconds, {"path": path})

    def batch(self, products: int) -> None:
        self._products.inc(products)
        self._batch.observe(products)

    def model(self, version: str | None) -> None:
        if version:
            name, _, number = version.rpartition("/")
            if number.isdecimal():
                self._version.set(float(number), {"model": name})

    def text(self) -> str:
        """Of all replicas of all nodes, as Prometheus reads it; what a node has not handed on yet is not in it."""
        lines: list[str] = []
        session = requests.Session()
        session.trust_env = False  # no proxy stands between nodes
        for node in ray.nodes():
            with contextlib.suppress(requests.RequestException):  # a node that has just gone
                where = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
                found = session.get(where, timeout=2).text.splitlines() if node["Alive"] else []
                lines += [line.replace(f"ray_{PREFIX}", PREFIX) for line in found if f"ray_{PREFIX}" in line]
        return "\n".join(dict.fromkeys(lines)) + "\n"
