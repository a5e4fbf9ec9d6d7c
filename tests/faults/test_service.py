"""The service as it is started: over HTTP, with two replicas on a Ray of its own."""

import contextlib
import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import requests
from mlflow import MlflowClient

from cataloger.bundle import WEIGHTS, read_spec, write_spec
from cataloger.config import EvaluateConfig
from cataloger.explaining.occlusion import Explainer
from cataloger.infra import tracking
from cataloger.live.products import MOST_EXPLAINED
from cataloger.model import registry
from cataloger.model.tiers import Tiers
from cataloger.spec import MANY_CATEGORIES
from conftest import ROOT, free_of_ray, refused
from servers import free_port

Job = Callable[..., tuple[int, str, str]]
NAME, TOKEN = "served", "a-token-that-nobody-guesses"
pytestmark = [pytest.mark.slow, pytest.mark.faults]


class Service:
    def __init__(self, address: str, process: "subprocess.Popen[str]") -> None:
        self.address, self.process = address, process
        self.session = requests.Session()
        self.session.mount("http://", requests.adapters.HTTPAdapter(pool_maxsize=32))
        self.session.headers["Authorization"] = f"Bearer {TOKEN}"

    def ask(self, body: Any) -> requests.Response:
        return self.session.post(f"{self.address}/categorize", json=body, timeout=60)

    def model(self) -> dict[str, Any]:
        return dict(self.session.get(f"{self.address}/model", timeout=60).json())

    def replicas(self) -> list[psutil.Process]:
        found = []
        for process in psutil.Process(self.process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "ray::ServeReplica" in " ".join(process.cmdline()):
                    found.append(process)
        return found


@pytest.fixture(scope="module")
def versions(
    tracking_store: str,
    bundle: Path,
    seeing: Any,
    tiny_model: Path,
    labelled: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, str]:
    """Version 1, the champion, gives one category, version 2 any number of them, and version 3 has lost its weights."""
    tracking.connect()
    room = tmp_path_factory.mktemp("versions")
    many, broken = shutil.copytree(bundle, room / "many"), shutil.copytree(bundle, room / "broken")
    spec = read_spec(bundle)
    write_spec(
        many, replace(spec, head=MANY_CATEGORIES, thresholds=(0.5,), category_thresholds=(0.3,) * len(spec.categories))
    )
    (broken / WEIGHTS).write_bytes(b"nothing")
    for folder in (bundle, many, broken):
        with tracking.run("train", "by hand", EvaluateConfig(catalog="none", experiment="served"), None, {}) as run_id:
            registry.register(folder, NAME, run_id)
    return {"one": "1", "many": "2", "broken": "3"}


@pytest.fixture(scope="module")
def service(versions: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    room, port = tmp_path_factory.mktemp("service"), free_port()
    (room / "token").write_text(f"{TOKEN}\n")
    flags = ["--model", f"models:/{NAME}@champion", "--port", str(port), "--replicas", "2", "--token-file", "token"]
    with (room / "log").open("w") as out:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "jobs/serve.py"), *flags],
            cwd=room,
            env=free_of_ray(),
            stdout=out,
            stderr=out,
            text=True,
        )
    try:
        found = Service(f"http://127.0.0.1:{port}", process)
        deadline = time.monotonic() + 240
        while "serving" not in (room / "log").read_text():
            assert process.poll() is None, (room / "log").read_text()
            assert time.monotonic() < deadline, (room / "log").read_text()
            time.sleep(0.2)
        yield found
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def products(labelled: Path) -> list[dict[str, Any]]:
    """1,000 products, two of which have nothing to read."""
    rows = pq.read_table(labelled).slice(0, 998).to_pylist()
    return [*rows, {"id": "empty", "title": None, "brand": "", "description": None}, {"id": "blank", "title": " "}]


def check_as_label_publishes(service: Service, job: Job, labelled: Path, version: str) -> None:
    rows, chance = products(labelled), random.Random(0)
    names = ("id", "title", "brand", "description")
    pq.write_table(pa.table({name: [str(row.get(name) or "") for row in rows] for name in names}), "catalog.parquet")
    flags = ("--max-reject-fraction", 1, "--model", f"models:/{NAME}/{version}")
    code, _, err = job("label", "--catalog", "catalog.parquet", "--output", f"labels-{version}", *flags)
    assert code == 0, err
    run = json.loads(Path(f"labels-{version}/_latest.json").read_text())["path"]
    published = pq.read_table(f"labels-{version}/{run}")
    parts = []
    while rows:
        size = chance.choice([1, 2, 7, 40, 200])
        parts.append(rows[:size])
        rows = rows[size:]
    with ThreadPoolExecutor(8) as pool:
        answers = [answer for found in pool.map(lambda part: service.ask(part).json(), parts) for answer in found]
    unread = {answer["id"]: answer["reason"] for answer in answers if "reason" in answer}
    assert unread == dict.fromkeys(("empty", "blank"), "no text in any of the text columns")
    found = pa.Table.from_pylist(
        [{**answer, "id": str(answer["id"])} for answer in answers if "reason" not in answer], published.schema
    )
    for name in published.column_names:
        assert found.column(name).equals(published.column(name)), f"{name}, byte for byte"


def test_answers_are_what_the_nightly_job_publishes(
    ray_session: None, service: Service, job: Job, labelled: Path
) -> None:
    check_as_label_publishes(service, job, labelled, "1")


def test_who_asks_badly_is_told_so(service: Service) -> None:
    for body, status, sentence in (
        ({"name": "red shoes"}, 422, "none of the fields that the model reads: title, brand, description"),
        ({"title": " "}, 422, "no text in any of the text columns"),
        ([], 422, "the list is empty"),
        ([{"title": "x"}] * 1_001, 413, "at most 1,000"),
        ({"title": "x" * (5 << 20)}, 413, "larger than 4 MiB"),
    ):
        found = service.ask(body)
        assert (found.status_code, sentence in found.json()["detail"]) == (status, True), found.text
    bare = requests.post(
        f"{service.address}/categorize", json={"title": "x"}, headers={"Authorization": TOKEN}, timeout=60
    )
    assert bare.status_code == 401, "a token has a scheme"
    anybody = requests.post(f"{service.address}/categorize", json={"title": "red shoes"}, timeout=60)
    assert anybody.status_code == 401
    assert "Bearer" in anybody.json()["detail"]
    wrong = {"Authorization": "Bearer no"}
    for path in ("/model", "/docs", "/openapi.json", "/metrics"):
        assert requests.get(f"{service.address}{path}", headers=wrong, timeout=60).status_code == 401
    assert requests.get(f"{service.address}/health", timeout=60).json() == {"status": "ok"}
    assert service.session.get(f"{service.address}/nothing", timeout=60).status_code == 404


def test_it_says_what_it_is(service: Service) -> None:
    about = service.model()
    assert (about["version"], about["columns"]) == (f"{NAME}/1", ["title", "brand", "description"])
    page = service.session.get(f"{service.address}/openapi.json", timeout=60).json()
    given = page["paths"]["/categorize"]["post"]
    asked = given["requestBody"]["content"]["application/json"]["examples"]["one product"]["value"]
    assert service.ask(asked).json() == given["responses"]["200"]["content"]["application/json"]["example"]
    assert "swagger" in service.session.get(f"{service.address}/docs", timeout=60).text
    deadline = time.monotonic() + 60
    while 'status="422"' not in (text := service.session.get(f"{service.address}/metrics", timeout=60).text):
        assert time.monotonic() < deadline, text
        time.sleep(1)
    assert "cataloger_requests" in text
    assert "cataloger_request_seconds_bucket" in text


def test_it_says_why(service: Service, bundle: Path) -> None:
    address, product = f"{service.address}/explain", {"id": 7, "title": "red  shoes", "brand": "Acme"}
    found = service.session.post(address, json=product, timeout=60).json()
    assert found["id"] == 7
    (why,) = found["explanations"]
    answer = service.ask(product).json()
    assert (why["category"], why["confidence"]) == (answer["category"], pytest.approx(answer["confidence"], abs=1e-6))
    assert why["runner_up"] == answer["alternatives"][0]["category"]
    assert [(one["field"], one["start"], one["end"]) for one in why["words"]] == [
        ("title", 0, 3),
        ("title", 5, 10),
        ("brand", 0, 4),
    ]
    tiers = Tiers(bundle, precision="auto")
    table = pa.table({"title": ["red  shoes"], "brand": ["Acme"], "description": pa.nulls(1, pa.string())})
    ((own,),) = Explainer.of(tiers).explain(table, tiers.published(table, 1).labels)
    assert [one["weight"] for one in why["words"]] == pytest.approx([one.weight for one in own.words], abs=0.05)
    listed = service.session.post(address, json=[product, {"id": 8, "title": " "}], timeout=60).json()
    assert listed == [found, {"id": 8, "reason": "no text in any of the text columns"}]
    many = service.session.post(address, json=[product] * (MOST_EXPLAINED + 1), timeout=60)
    assert (many.status_code, many.json()["detail"]) == (
        413,
        "21 products are too many for one request; send at most 20",
    )
    assert service.session.post(address, json={"title": ""}, timeout=60).status_code == 422
    assert requests.post(address, json=product, timeout=60).status_code == 401
    page = service.session.get(f"{service.address}/openapi.json", timeout=60).json()["paths"]["/explain"]["post"]
    assert page["responses"]["200"]["content"]["application/json"]["example"]["explanations"]


def versions_of(service: Service) -> set[str]:
    return {service.model()["version"] for _ in range(40)}


@contextlib.contextmanager
def load(service: Service) -> Iterator["Counter[Any]"]:
    """Eight callers who ask without a pause; the answers by their status, or by what became of the connection."""
    statuses: Counter[Any] = Counter()
    over = threading.Event()

    def call(number: int) -> None:
        while not over.is_set():
            try:
                # One in eight is a list of 100, longer than HAProxy keeps by default.
                one = {"id": number, "title": f"red shoes {random.random()}", "page": "x" * 200}
                found: Any = service.ask([one] * 100 if number == 0 else one).status_code
            except requests.RequestException as error:
                found = repr(error)
            statuses[found] += 1

    with ThreadPoolExecutor(8) as pool:
        for number in range(8):
            pool.submit(call, number)
        try:
            yield statuses
        finally:
            over.set()


def test_a_killed_replica_loses_no_request(service: Service) -> None:
    before = service.replicas()
    assert len(before) == 2
    with load(service) as statuses:
        time.sleep(2)
        before[0].kill()
        time.sleep(5)
        deadline = time.monotonic() + 120
        while len(service.replicas()) < 2 and time.monotonic() < deadline:
            time.sleep(0.5)
    assert set(statuses) == {200}, statuses
    assert statuses[200] > 50
    assert len(service.replicas()) == 2


def test_a_promotion_is_followed_without_a_failed_request(
    ray_session: None, service: Service, job: Job, labelled: Path, versions: dict[str, str]
) -> None:
    client = MlflowClient()
    with load(service) as statuses:
        client.set_registered_model_alias(NAME, "champion", versions["many"])
        promoted = time.monotonic()
        # Of both replicas: each answers about half of so many.
        while versions_of(service) != {f"{NAME}/2"} and time.monotonic() < promoted + 60:
            time.sleep(0.5)
        took = time.monotonic() - promoted
    assert took < 60, "within a minute"
    assert set(statuses) == {200}, statuses
    check_as_label_publishes(service, job, labelled, "2")


def test_a_model_that_does_not_load_leaves_the_one_that_answers(service: Service, versions: dict[str, str]) -> None:
    before = service.model()["version"]
    MlflowClient().set_registered_model_alias(NAME, "champion", versions["broken"])
    with load(service) as statuses:
        began = time.monotonic()
        while {service.model()["refused"] for _ in range(40)} != {f"{NAME}/3"} and time.monotonic() < began + 60:
            time.sleep(0.5)
    assert set(statuses) == {200}, statuses
    assert {service.model()["refused"] for _ in range(40)} == {f"{NAME}/3"}
    assert versions_of(service) == {before}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        (("--model", "models:/nobody@champion"), "model models:/nobody@champion: not found in MLflow"),
        (("--replicas", "4:1"), "--replicas 4:1: must be a number such as 4, or a range such as 1:4"),
        (("--replicas", "0"), "--replicas 0: at least one must answer"),
        (("--port", "70000"), "--port 70000: must be from 1 to 65535"),
        (("--token-file", "nowhere"), "--token-file nowhere: cannot be read"),
        (("--host", "192.0.2.77"), "cannot listen on 192.0.2.77:8000"),
    ],
)
def test_what_cannot_be_served_is_said(job: Job, bundle: Path, flags: tuple[str, ...], sentence: str) -> None:
    model = () if "--model" in flags else ("--model", bundle)
    refused(job("serve", *model, *flags), sentence)


def test_a_port_that_is_taken_is_said(job: Job, bundle: Path, service: Service) -> None:
    port = service.address.rpartition(":")[2]
    refused(job("serve", "--model", bundle, "--port", port), f"--port {port}: cannot listen on 127.0.0.1:{port}")
