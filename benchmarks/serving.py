"""Titles over HTTP: `jobs/serve.py` against what MLflow and transformers bring along, the same model on the same cores.

python benchmarks/serving.py
"""

import asyncio
import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import requests
import tyro

from cataloger.config import EvaluateConfig
from cataloger.infra import tracking
from cataloger.model import registry
from cataloger.model.tiers import Tiers
from yardsticks import make_bundle, report, titles, workroom

PIPELINE = """
import sys, torch
from fastapi import FastAPI, Request
from transformers import pipeline
import uvicorn
torch.set_num_threads(2)
answer = pipeline("text-classification", sys.argv[1], trust_remote_code=True, dtype=torch.bfloat16)
app = FastAPI()
@app.post("/categorize")
def categorize(body: dict):
    return answer(body["title"], truncation=True)[0]
@app.get("/health")
def health():
    return {}
uvicorn.run(app, port=int(sys.argv[2]), log_level="error")
"""
OURS, MLFLOW, TRANSFORMERS = "jobs/serve.py", "mlflow models serve", "FastAPI and transformers.pipeline"
# How many callers ask without a pause, until a service is slower than `p99_ms` with one of every hundred.
CALLERS = (1, 2, 4, 8, 16, 32, 64, 96, 128)
PORT = 8123


@dataclass(frozen=True)
class Config:
    """What to measure."""

    model: str | None = None
    """Bundle folder of a model that reads titles; without it, MiniLM with 400 categories, which knows nothing and has no words."""
    texts: str | None = None
    """Parquet file with its titles, in the column `title`."""
    seconds: float = 10.0
    """For each number of callers."""
    p99_ms: float = 250.0
    """The slowest of a hundred answers may take so long."""
    loads: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9)
    """Shares of the rows/s of our service that come at random times, whether answers have come or not (open loop)."""
    minutes: float = 0.0
    """So long at 90% of it, to see how its memory grows."""


def main() -> None:
    config = tyro.cli(Config)
    with workroom() as room:
        bundle = Path(config.model) if config.model else make_bundle(room / "bundle")
        table = pq.read_table(config.texts, columns=["title"]) if config.texts else titles(20_000, room)
        texts = np.random.default_rng(0).permutation(table.column("title").drop_null().to_pylist())[:20_000].tolist()
        tracking.connect()
        with tracking.run("train", "serving", EvaluateConfig(catalog="none"), None, {}) as run_id:
            uri, _ = registry.register(bundle, "serving", run_id)
        (room / "pipeline.py").write_text(PIPELINE)
        one = bare(bundle, texts)
        python = sys.executable
        services: dict[str, tuple[list[str], str, Callable[[str], Any]]] = {
            OURS: (
                [python, "jobs/serve.py", "--model", uri, "--port", str(PORT)],
                "/categorize",
                lambda text: {"title": text},
            ),
            MLFLOW: (
                [
                    python,
                    "-m",
                    "mlflow",
                    "models",
                    "serve",
                    "-m",
                    uri,
                    "--env-manager",
                    "local",
                    "--port",
                    str(PORT),
                    "--workers",
                    "1",
                ],
                "/invocations",
                lambda text: {"dataframe_split": {"columns": ["title"], "data": [[text]]}},
            ),
            TRANSFORMERS: (
                [python, str(room / "pipeline.py"), str(bundle), str(PORT)],
                "/categorize",
                lambda text: {"title": text},
            ),
        }
        rows: list[dict[str, object]] = []
        for name, (command, path, body) in services.items():
            with started(command) as process:
                url = f"http://127.0.0.1:{PORT}{path}"
                rows.append({"service": name, **measure(url, body, texts, config)})
                if name == OURS:
                    most = float(str(rows[-1]["rows/s"]))
                    opened = [open_loop(url, body, texts, share * most, config.seconds) for share in config.loads]
                    if config.minutes:
                        lasting(url, body, texts, 0.9 * most, config.minutes, process)
            rows[-1]["p50 of one caller ÷ bare forward pass"] = float(str(rows[-1]["p50 of one caller, ms"])) / one
            print(rows[-1], flush=True)
        for row in rows:
            row["÷ this"] = float(str(rows[0]["rows/s"])) / float(str(row["rows/s"]))
        title = f"Titles one by one; rows/s where one in a hundred takes {config.p99_ms:.0f} ms at most; bare forward pass {one:.1f} ms"
        report("serving", title, rows, ("service", "rows/s"))
        report("serving_open", "Titles that come at random times", opened)


def bare(bundle: Path, texts: list[str]) -> float:
    """Milliseconds of the forward pass of one row, tokens ready: the median over titles."""
    tiers = Tiers(bundle, precision="auto", live=True)
    encoded = tiers.input.encode(pa.array(texts[:300]))
    batches = [encoded.batch(np.array([row])) for row in range(300)]
    for batch in batches[:50]:
        tiers.network.engine(batch)
    took = []
    for batch in batches:
        began = time.perf_counter()
        tiers.network.engine(batch)
        took.append(time.perf_counter() - began)
    return 1_000 * float(np.median(took))


@contextmanager
def started(command: list[str]) -> Iterator[psutil.Process]:
    """A service that answers at its address, as long as the block runs."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # MLflow starts uvicorn by its name
    process = subprocess.Popen(
        command,
        env={**os.environ, "PATH": path},
        cwd=Path(__file__).parents[1],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 240
        while True:
            try:
                if requests.get(f"http://127.0.0.1:{PORT}/health", timeout=5).ok:
                    break
            except requests.RequestException:
                pass
            assert process.poll() is None, f"{command} has ended"
            assert time.monotonic() < deadline, f"{command} does not answer"
            time.sleep(0.5)
        yield psutil.Process(process.pid)
    finally:
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        for member in family:
            if member.is_running():
                member.kill()


def measure(url: str, body: Callable[[str], Any], texts: list[str], config: Config) -> dict[str, object]:
    """The most rows/s within the bound, and how long one caller waits."""
    found: dict[str, object] = {}
    best = 0.0
    for callers in CALLERS:
        rate, p50, p99, failed = asyncio.run(ask(url, body, texts, callers, config.seconds))
        print(
            f"  {callers} callers: {rate:,.0f} rows/s, p50 {p50:.1f} ms, p99 {p99:.1f} ms, {failed} failed", flush=True
        )
        if callers == 1:
            found = {"p50 of one caller, ms": p50, "p99 of one caller, ms": p99}
        if failed or p99 > config.p99_ms:
            break
        if rate > best:
            best = rate
            found |= {"rows/s": rate, "callers": callers, "p50, ms": p50, "p99, ms": p99}
    return {"rows/s": 0.0, **found}


async def ask(
    url: str, body: Callable[[str], Any], texts: list[str], callers: int, seconds: float
) -> tuple[float, float, float, int]:
    """(rows/s, p50 and p99 in ms, answers other than 200) of so many callers who ask without a pause; a fifth of the time is for warming up."""
    took: list[float] = []
    failed = 0
    queue = iter(texts * 100)
    began = time.perf_counter()
    warm, end = began + seconds / 5, began + seconds * 1.2
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def call() -> None:
            nonlocal failed
            while (now := time.perf_counter()) < end:
                payload = json.dumps(body(next(queue)))
                async with session.post(url, data=payload, headers={"Content-Type": "application/json"}) as answer:
                    await answer.read()
                if now >= warm:
                    took.append(time.perf_counter() - now)
                    failed += answer.status != 200

        await asyncio.gather(*(call() for _ in range(callers)))
    p50, p99 = np.percentile(took, [50, 99]) * 1_000
    return len(took) / seconds, float(p50), float(p99), failed


def open_loop(url: str, body: Callable[[str], Any], texts: list[str], rate: float, seconds: float) -> dict[str, object]:
    """How long answers take when so many are asked for in a second, at random times (a Poisson process)."""
    took, statuses = asyncio.run(_come(url, body, texts, rate, seconds))
    p50, p99 = np.percentile(took, [50, 99]) * 1_000 if took else (np.nan, np.nan)
    row: dict[str, object] = {"rows/s asked": rate, "p50, ms": p50, "p99, ms": p99}
    row |= {
        "answered": statuses[200],
        "refused (429)": statuses[429],
        "failed": statuses.total() - statuses[200] - statuses[429],
    }
    print(f"  {row}", flush=True)
    return row


async def _come(
    url: str, body: Callable[[str], Any], texts: list[str], rate: float, seconds: float
) -> tuple[list[float], Counter[int]]:
    took: list[float] = []
    statuses: Counter[int] = Counter()
    random = np.random.default_rng(0)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def call(text: str) -> None:
            began = time.perf_counter()
            payload, header = json.dumps(body(text)), {"Content-Type": "application/json"}
            try:
                async with session.post(url, data=payload, headers=header) as answer:
                    await answer.read()
            except aiohttp.ClientError:
                statuses[0] += 1
                return
            statuses[answer.status] += 1
            if answer.status == 200:
                took.append(time.perf_counter() - began)

        calls, next_one, end = set(), time.perf_counter(), time.perf_counter() + seconds
        for number in itertools.count():
            next_one += random.exponential(1 / rate)
            if next_one > end:
                break
            await asyncio.sleep(max(0.0, next_one - time.perf_counter()))
            one = asyncio.create_task(call(texts[number % len(texts)]))
            calls.add(one)
            one.add_done_callback(calls.discard)
        await asyncio.gather(*calls)
    return took, statuses


def lasting(
    url: str, body: Callable[[str], Any], texts: list[str], rate: float, minutes: float, service: psutil.Process
) -> None:
    """Memory of the replica in each minute, under load all the time."""

    def replica() -> float:
        family = [one for one in service.children(recursive=True) if "ServeReplica" in " ".join(one.cmdline())]
        return sum(one.memory_info().rss for one in family) / 2**20

    for minute in range(round(minutes) + 1):
        print(f"  after {minute} minutes: {replica():,.0f} MiB", flush=True)
        if minute < minutes:
            open_loop(url, body, texts, rate, 60)


if __name__ == "__main__":
    main()
