"""What a night of 10^8 to 10^10 rows takes on a cluster: a simulation of discrete events, calibrated on what was measured here.

python benchmarks/fleet.py
"""

import itertools
import json
import random
from collections import Counter
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import simpy
import tyro

RESULTS = Path(__file__).parent / "results"
ROWS_PER_UNIT = 65_536
# Amazon S3 promises at least so many requests per second and prefix (docs.aws.amazon.com/AmazonS3, "Best practices design patterns").
GETS_PER_SECOND, PUTS_PER_SECOND = 5_500, 3_500
LATENCY = 0.05
Step = Generator[Any, Any, None]


@dataclass(frozen=True)
class Node:
    """A machine: with `gpus`, forward passes are theirs, else they take cores."""

    name: str
    cores: int
    gpus: int
    dollars_per_hour: float
    bytes_per_second: float
    starts_in: float = 0.0
    """Seconds until it has joined the cluster."""
    lost_per_hour: float = 0.0
    """Of spot machines, how often one is taken away."""


@dataclass(frozen=True)
class Work:
    """What a row takes: seconds of one core, of one GPU (or of cores where there is none), and bytes; and what the driver does."""

    read: float
    carry: float
    """To find out what label it has already, where a run is published."""
    encode: float
    """To make tokens of it, where it has none."""
    forward: float
    write: float
    compare: float
    """To compare a label with yesterday's."""
    driver: float
    """Of each unit, seconds of the driver."""
    waiting: float
    """What the driver takes of a core while it waits."""
    start: float
    """Until the first unit is read, and after the last one is compared."""
    begin_to_compare: float
    """Of each night, whatever its rows."""
    catalog_bytes: float = 40.0
    label_bytes: float = 52.0
    """As measured: a part of 62,500 labels has 3.2 MB."""


@dataclass(frozen=True)
class Night:
    rows: float
    changed: float = 1.0
    """The share of rows that the published run does not know; 1 in a first night."""

    @property
    def units(self) -> int:
        return max(1, round(self.rows / ROWS_PER_UNIT))


@dataclass(frozen=True)
class Found:
    seconds: float
    dollars: float
    busy: dict[str, float]
    """The share of the time that each kind of resource was in use."""
    lost: int

    @property
    def bottleneck(self) -> str:
        return max(self.busy, key=lambda name: self.busy[name])


def simulate(night: Night, node: Node, nodes: int, work: Work, seed: int = 0) -> Found:
    """One night: every unit is read, answered and written on one of the nodes, and all of it is compared and published."""
    return _Cluster(night, node, nodes, work, seed).run()


class _Cluster:
    def __init__(self, night: Night, node: Node, nodes: int, work: Work, seed: int) -> None:
        self.night, self.node, self.nodes, self.work = night, node, nodes, work
        self.env, self.random = simpy.Environment(), random.Random(seed)
        self.driver, self.store = simpy.Resource(self.env), simpy.Resource(self.env)
        self.todo, self.done = simpy.Store(self.env), 0
        self.todo.items.extend(range(night.units))
        self.finished = self.env.event()
        self.used: Counter[str] = Counter()
        self.lost, self.paid = 0, 0.0
        self.ordered: dict[simpy.Event, float] = {}

    def run(self) -> Found:
        for _ in range(self.nodes):
            self.env.process(self.machine())
        self.env.run(self.finished)
        # All nodes compare tonight's labels with yesterday's.
        known = 2 if self.night.changed < 1 else 1
        compare = self.night.rows * known * self.work.compare / (self.nodes * self.node.cores)
        read = self.night.rows * known * self.work.label_bytes / (self.nodes * self.node.bytes_per_second)
        end = self.work.begin_to_compare + max(compare, read)
        seconds = self.env.now + end
        has = {"cores": self.node.cores * self.nodes, "network": self.nodes, "driver": 1, "S3 requests": 1}
        has |= {"GPUs": self.node.gpus * self.nodes} if self.node.gpus else {}
        busy = {name: self.used[name] / amount / self.env.now for name, amount in has.items()}
        busy["driver"] += self.work.waiting * (1 - busy["driver"])
        # A machine is paid from its order on.
        hours = (self.paid + sum(self.env.now + end - since for since in self.ordered.values())) / 3600
        return Found(seconds, hours * self.node.dollars_per_hour, busy, self.lost)

    def machine(self) -> Step:
        """A node from its order to its end; where it is taken away, another one is ordered."""
        gone = self.env.event()
        self.ordered[gone] = self.env.now
        yield self.env.timeout(self.node.starts_in + self.work.start)
        parts = {
            "cores": simpy.Resource(self.env, self.node.cores),
            "network": simpy.Resource(self.env),
            "GPUs": simpy.Resource(self.env, max(1, self.node.gpus)),
        }
        # So many units are on their way at a time that nothing waits for the next one.
        ahead = [self.env.process(self.units(parts)) for _ in range(self.node.cores + 2 * max(1, self.node.gpus))]
        if not self.node.lost_per_hour:
            return
        yield self.env.timeout(self.random.expovariate(self.node.lost_per_hour / 3600))
        self.lost += 1
        self.paid += self.env.now - self.ordered.pop(gone)
        for process in ahead:
            process.interrupt()
        self.env.process(self.machine())

    def units(self, parts: dict[str, simpy.Resource]) -> Step:
        while True:
            unit = None
            try:
                waiting = self.todo.get()
                unit = yield waiting
                yield from self.unit(parts)
            except simpy.Interrupt:
                if unit is None:
                    waiting.cancel()
                else:
                    self.todo.put(unit)
                return
            self.done += 1
            if self.done == self.night.units:
                self.finished.succeed()

    def unit(self, parts: dict[str, simpy.Resource]) -> Step:
        night, work = self.night, self.work
        rows = night.rows / night.units
        carried = 1 - night.changed
        # Each of the stream's three tasks is one more thing for the driver to start and to end.
        yield from self.drive(parts)
        yield from self.use("S3 requests", self.store, (4 + 4 * (carried > 0)) / GETS_PER_SECOND)
        size = rows * (work.catalog_bytes + work.label_bytes * (carried > 0))
        yield self.env.timeout(LATENCY)
        yield from self.use("network", parts["network"], size / self.node.bytes_per_second)
        look_up = work.carry if carried else 0.0
        yield from self.use("cores", parts["cores"], rows * (work.read + look_up + night.changed * work.encode))
        yield from self.drive(parts)
        forward = rows * night.changed * work.forward
        if self.node.gpus:
            yield from self.use("GPUs", parts["GPUs"], forward)
        else:
            yield from self.use("cores", parts["cores"], forward)
        yield from self.drive(parts)
        yield from self.use("cores", parts["cores"], rows * work.write)
        yield from self.use("network", parts["network"], rows * work.label_bytes / self.node.bytes_per_second)
        yield from self.use("S3 requests", self.store, 1 / PUTS_PER_SECOND)
        yield self.env.timeout(LATENCY)

    def drive(self, parts: dict[str, simpy.Resource]) -> Step:
        """A third of what the driver does for a unit; it is on the head, or, where that is all there is, beside the work."""
        if self.node == HERE:
            yield from self.use("cores", parts["cores"], self.work.driver / 3)
        else:
            yield from self.use("driver", self.driver, self.work.driver / 3)

    def use(self, name: str, resource: simpy.Resource, seconds: float) -> Step:
        with resource.request() as turn:
            yield turn
            yield self.env.timeout(seconds)
            self.used[name] += seconds


# What tokens and the network take of a row goes with its tokens; scale.py's titles have ten.
TOKENS_HERE, TOKENS = 10, 25
# What each stage took of the work of the first night of 10^8 rows, as the job's own log says, 2026-11-27.
SHARES = {"read": 7, "encode": 88, "forward": 57, "write": 11}
HERE = Node("these two cores", 2, 0, 0.0, 1e9)
# The generated files have 500,000 rows in a row group, which make eight units.
ROWS_PER_UNIT_THERE = 62_500
DRIVER, COMPARE = "CPU of the driver, s", "compare and commit, s"
STEADY = "steady state, µs per row"
# Rows per second of the network alone, titles of 25 tokens: a GPU as benchmarks/gpu.py found it (BERT-base, H200, 2026-11-26), a core as
# benchmarks/labeling.py did (MiniLM, two cores, 2026-11-25); and what Infinity published for DistilBERT with 100 tokens on an L4
# (huggingface.co/blog/billion-classifications: 875 rows/s, $0.80 an hour), which is four times as much with a fourth of the tokens.
H200, CORE, L4 = 70_192, 1_178 / 2, 875 * 4
# Dollars are assumptions: the L4's is Infinity's, a c5.4xlarge's AWS's own example (16 threads, $0.68, spot about half), the H200's a guess.
FLEETS = {
    "BERT-base, H200": (Node("H200, 16 cores", 16, 1, 4.0, 3e9, 180), H200, (1, 2, 4, 8, 16)),
    "DistilBERT, L4": (Node("L4, 8 cores", 8, 1, 0.8, 1e9, 180), L4, (4, 16, 64)),
    "MiniLM, spot CPUs": (Node("16 cores, spot", 16, 0, 0.34, 6e8, 120, 0.05), CORE, (16, 64, 256)),
}


@dataclass(frozen=True)
class Config:
    """What to ask."""

    rows: tuple[float, ...] = (1e8, 1e9, 1e10)
    """Products."""


def main() -> None:
    from yardsticks import report

    config = tyro.cli(Config)
    work = calibrated(measured())
    checks = list(checked(work))
    report("fleet_checks", "The simulation beside what was measured", checks)
    nights = [Night(rows, changed) for rows in config.rows for changed in (1.0, 0.01)]
    rows = list(asked(nights, work))
    report("fleet", "Nights on a cluster, simulated", rows)
    draw(rows)


def measured() -> dict[tuple[int, str], dict[str, Any]]:
    """The nights of benchmarks/scale.py on this machine's two cores."""
    rows = json.loads((RESULTS / "scale.json").read_text())["rows"]
    return {(int(row["rows"].replace(",", "")), row["night"]): row for row in rows}


def calibrated(nights: dict[tuple[int, str], dict[str, Any]]) -> Work:
    """What rows take, by the two nights of the most rows, and what each night takes, by the two of the fewest: those between check it.

    The driver works for each unit, and for every second that it waits.
    """
    few, rows = min(nights)[0], max(nights)[0]
    assert few < rows, "benchmarks/scale.py of several sizes comes first"
    first, second = nights[rows, "first"], nights[rows, "1% changed"]
    units = rows / ROWS_PER_UNIT_THERE
    waiting = (first[DRIVER] - second[DRIVER]) / (first["seconds"] - second["seconds"])
    driver = (first[DRIVER] - waiting * first["seconds"]) / units
    small = [(nights[few, name], nights[rows, name]) for name in ("first", "1% changed")]
    # Nights at 1% changed compare two labels for each row.
    each = (second[COMPARE] - small[1][0][COMPARE]) / (2 * (rows - few))
    begin = small[1][0][COMPARE] - 2 * few * each
    start = [night["seconds"] - night[COMPARE] - large[STEADY] * few / 1e6 for night, large in small]
    # What the driver takes of a core while it waits counts as work here, where it is on the same two.
    core, again = (HERE.cores * night[STEADY] / 1e6 - driver / ROWS_PER_UNIT_THERE for night in (first, second))
    of = {name: core * share / sum(SHARES.values()) for name, share in SHARES.items()}
    carry = again - of["read"] - of["write"] - 0.01 * (of["encode"] + of["forward"])
    own = {"driver": driver, "waiting": waiting, "start": sum(start) / 2, "begin_to_compare": begin}
    return Work(**of, carry=carry, compare=HERE.cores * each, **own)


def checked(work: Work) -> Iterator[dict[str, object]]:
    """Each night that was measured, and what the simulation makes of it."""
    nights = measured()
    few, most = min(nights)[0], max(nights)[0]
    for (rows, name), night in sorted(nights.items()):
        found = simulate(Night(rows, 1.0 if name == "first" else 0.01), HERE, 1, work)
        took = night["seconds"]
        yield {
            "rows": f"{rows:,}",
            "night": name,
            "measured, s": took,
            "simulated, s": found.seconds,
            "simulated ÷ measured": found.seconds / took,
            "": "" if few < rows < most else "made of it",
        }


def asked(nights: list[Night], work: Work) -> Iterator[dict[str, object]]:
    for (name, (node, rate, sizes)), night in itertools.product(FLEETS.items(), nights):
        longer = TOKENS / TOKENS_HERE
        own = replace(work, forward=1 / rate, encode=work.encode * longer, catalog_bytes=work.catalog_bytes * longer)
        for nodes in sizes:
            found = simulate(night, node, nodes, own)
            yield {
                "model and machines": name,
                "rows": f"{night.rows:.0e}".replace("e+", "e"),
                "night": "first" if night.changed == 1 else f"{night.changed:.0%} changed",
                "machines": float(nodes),
                "hours": found.seconds / 3600,
                "dollars": found.dollars,
                "dollars per 1e9 rows": found.dollars / night.rows * 1e9,
                "busiest": found.bottleneck,
                "share of its time": found.busy[found.bottleneck],
                "driver busy": found.busy["driver"],
                "machines lost": float(found.lost),
            }


def draw(rows: list[dict[str, Any]]) -> None:
    """Hours by machines, for each fleet."""
    figure, axes = plt.subplots(1, len(FLEETS), figsize=(12, 4), sharey=True, layout="constrained")
    for place, name in zip(axes, FLEETS, strict=True):
        for (size, night), own in itertools.groupby(
            (row for row in rows if row["model and machines"] == name), key=lambda row: (row["rows"], row["night"])
        ):
            points = list(own)
            place.plot(
                [point["machines"] for point in points],
                [point["hours"] for point in points],
                "o-" if night == "first" else "o--",
                label=f"{size} rows, {night}",
            )
        place.set(xscale="log", yscale="log", title=name, xlabel="machines")
        sizes = FLEETS[name][2]
        place.set_xticks(sizes, [str(size) for size in sizes])
        place.set_xticks([], minor=True)
        place.grid(alpha=0.3)
    axes[0].set_ylabel("hours")
    axes[-1].legend(fontsize=7)
    figure.savefig(RESULTS / "fleet.png", dpi=120)


if __name__ == "__main__":
    main()
