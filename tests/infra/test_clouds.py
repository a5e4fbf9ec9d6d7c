"""Azure's and Google's stores: against Azurite, which npm has, and against an emulator of Google's behind a proxy.

The emulator takes every write, whatever its condition: the proxy in front of it holds the conditions, as Google says that it does
(https://cloud.google.com/storage/docs/request-preconditions).
"""

import base64
import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cataloger.errors import ConflictError, StorageError
from cataloger.infra import azure, google, stores
from cataloger.infra.storage import check_conditional, check_writable, locate
from conftest import ROOT, free_of_ray
from servers import BIN, free_port, kill_with_descendants, wait_for

AZURITE = "3.37.0"
# Everybody's: Azurite's documentation has it.
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@pytest.fixture(scope="module")
def az(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A container on an Azurite of this machine: `az://shop`."""
    from azure.storage.blob import BlobServiceClient

    port = free_port()
    command = [str(azurite()), "--location", str(tmp_path_factory.mktemp("azurite")), "--blobPort", str(port)]
    process = subprocess.Popen(
        [*command, "--silent", "--skipApiVersionCheck"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("AZURE_STORAGE_BLOB_ENDPOINT", f"http://127.0.0.1:{port}")
            patch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "devstoreaccount1")
            patch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
            address = f"http://127.0.0.1:{port}/devstoreaccount1"
            BlobServiceClient(address, credential=KEY, retry_total=8).create_container("shop")
            yield "az://shop"
    finally:
        kill_with_descendants(process)


def azurite() -> Path:
    """Installed once beside our environment, or a skip that says why it is not."""
    folder = ROOT / ".venv" / "azurite"
    program = folder / "node_modules" / ".bin" / "azurite-blob"
    if not program.exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("needs npm, to install Azurite")
        install = [npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), f"azurite@{AZURITE}"]
        done = subprocess.run(install, capture_output=True, text=True, timeout=300, check=False)
        if done.returncode or not program.exists():
            pytest.skip(f"npm does not install azurite@{AZURITE}: {done.stderr.strip()[-200:]}")
    return program


class Conditional(BaseHTTPRequestHandler):
    """Passes requests on to the emulator, and refuses writes whose `ifGenerationMatch` does not hold, one at a time."""

    protocol_version = "HTTP/1.1"
    behind = ""
    one_at_a_time = threading.Lock()

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        expected = parse_qs(asked.query).get("ifGenerationMatch")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.one_at_a_time:
            if expected and self.generation(asked.path, body) != expected[0]:
                return self.answer(412, b'{"error": {"code": 412, "message": "conditionNotMet"}}')
            headers = {
                name: value for name, value in self.headers.items() if name.lower() not in ("host", "content-length")
            }
            request = urllib.request.Request(self.behind + self.path, body or None, headers, method=self.command)
            try:
                with urllib.request.urlopen(request, timeout=30) as found:
                    return self.answer(found.status, found.read(), dict(found.headers))
            except HTTPError as error:
                return self.answer(error.code, error.read(), dict(error.headers))

    do_POST = do_PUT = do_DELETE = do_PATCH = do_GET

    def generation(self, path: str, body: bytes) -> str:
        """Of the object that an upload names, 0 where there is none."""
        name = json.loads(next(line for line in body.splitlines() if line.startswith(b"{")))["name"]
        bucket = path.split("/b/")[1].split("/")[0]
        try:
            with urllib.request.urlopen(
                f"{self.behind}/storage/v1/b/{bucket}/o/{urllib.request.quote(name, '')}"
            ) as found:
                return str(json.loads(found.read())["generation"])
        except HTTPError:
            return "0"

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            if name.lower() not in ("transfer-encoding", "content-length", "connection", "date", "server"):
                self.send_header(name, value.replace(self.behind, f"http://{self.headers['Host']}"))
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture(scope="module")
def gs() -> Iterator[str]:
    """A bucket on an emulator of this machine: `gs://shop`."""
    port, front = free_port(), free_port()
    command = [str(BIN / "gcp-storage-emulator"), "start", "--host=127.0.0.1", f"--port={port}", "--in-memory"]
    process = subprocess.Popen(
        [*command, "--default-bucket=shop"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    proxy = ThreadingHTTPServer(
        ("127.0.0.1", front), type("Front", (Conditional,), {"behind": f"http://127.0.0.1:{port}"})
    )
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        wait_for(f"http://127.0.0.1:{port}/storage/v1/b", process)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{front}")
            yield "gs://shop"
    finally:
        proxy.shutdown()
        kill_with_descendants(process)


@pytest.fixture(params=["az", "gs"])
def bucket(request: pytest.FixtureRequest) -> str:
    return str(request.getfixturevalue(request.param))


def test_of_all_writers_that_saw_the_same_one_wins(bucket: str) -> None:
    place = locate(f"{bucket}/race/_latest.json")
    assert place.version() is None
    place.replace(b"first", None)
    with pytest.raises(ConflictError, match="was written by somebody else meanwhile"):
        place.replace(b"also first", None)
    seen, outcomes = place.version(), []

    def turn(number: int) -> None:
        with contextlib.suppress(ConflictError):
            place.replace(f"writer {number}".encode(), seen)
            outcomes.append(number)

    threads = [threading.Thread(target=turn, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(outcomes) == 1
    assert place.read() == f"writer {outcomes[0]}".encode()
    # A write whose answer was lost is sent again, and finds itself.
    place.replace(f"writer {outcomes[0]}".encode(), seen)


def test_a_store_that_forgets_conditions_is_refused(gs: str, monkeypatch: pytest.MonkeyPatch) -> None:
    check_conditional(locate(f"{gs}/kept"))
    monkeypatch.setattr(Conditional, "generation", lambda *_: "0")  # as the emulator by itself
    with pytest.raises(StorageError, match="the store writes whatever the condition"):
        check_conditional(locate(f"{gs}/kept"))
    assert not locate(f"{gs}/kept").files()


def test_what_is_written_is_there(bucket: str) -> None:
    folder = locate(f"{bucket}/files")
    check_writable(folder)
    assert folder.files() == []
    for name in ("a", "deep/b", "deep/c d/ü"):
        (folder / name).write(name.encode())
    assert [info.path.removeprefix(f"{folder.path}/") for info in folder.files()] == ["a", "deep/b", "deep/c d/ü"]
    assert (folder / "deep/c d/ü").read() == "deep/c d/ü".encode()
    (folder / "a").write(b"another")
    assert (folder / "a").read() == b"another"
    (folder / "a").delete()
    assert not (folder / "a").exists()
    (folder / "deep").delete()
    assert folder.files() == []
    folder.abort_uploads()


@pytest.mark.parametrize("bucket", ["az", pytest.param("gs", marks=pytest.mark.slow)], indirect=True)
def test_a_night(bucket: str, bundle: Path) -> None:
    """By processes of their own, whose Ray knows the store's address."""
    upload_catalog(f"{bucket}/catalog/part.parquet")

    def run(job: str, *flags: str) -> str:
        command = [sys.executable, str(ROOT / "jobs" / f"{job}.py"), "--output", f"{bucket}/labels", *flags]
        done = subprocess.run(command, env=free_of_ray(), capture_output=True, text=True, timeout=200, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    label = ("--catalog", f"{bucket}/catalog", "--model", str(bundle), "--text-columns", "title")
    run("label", *label)
    assert "300 rows" in run("verify")
    run("label", *label, "--anew")
    run("publish", "--prune", "1")
    runs = {info.path.split("/")[2] for info in locate(f"{bucket}/labels").files() if "/run=" in info.path}
    assert len(runs) == 1, "the one that was replaced is gone"
    assert set(locate(f"{bucket}/labels").folders()) >= runs


def upload_catalog(uri: str) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"id": range(300), "title": [f"green tea {i}" for i in range(300)]}), sink)
    locate(uri).write(sink.getvalue())


def test_what_is_wrong_is_said_in_a_sentence(az: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match="az://nobody/labels: cannot be reached: there is no such container"):
        check_writable(locate("az://nobody/labels"))
    with pytest.raises(StorageError, match=r"az://…@…: credentials do not belong in a URI"):
        locate("az://shop@account/labels")
    with monkeypatch.context() as patch:
        patch.setenv("AZURE_STORAGE_ACCOUNT_KEY", base64.b64encode(bytes(64)).decode())
        with pytest.raises(StorageError, match="Azure refuses the credentials"):
            check_writable(locate(f"{az}/labels"))
    with monkeypatch.context() as patch:
        patch.delenv("AZURE_STORAGE_ACCOUNT_NAME")
        with pytest.raises(StorageError, match="set AZURE_STORAGE_ACCOUNT_NAME"):
            locate(f"{az}/labels")
    with monkeypatch.context() as patch:
        patch.setitem(stores.SCHEMES, "gs", ("google", "google.cloud.nothing", "google"))
        with pytest.raises(StorageError, match=r"needs the package google.cloud.nothing; pip install '.\[google\]'"):
            locate("gs://shop/labels")


def test_a_bucket_that_google_does_not_know(gs: str) -> None:
    with pytest.raises(StorageError, match="gs://nobody/labels: cannot be reached: there is no such bucket"):
        check_writable(locate("gs://nobody/labels"))


def test_errors_of_the_clients_have_a_meaning() -> None:
    assert "refuses the credentials" in str(azure.meaning(OSError("AuthenticationFailed 403")))
    assert "refuses the credentials" in str(google.meaning(OSError("google::cloud::Status(PERMISSION_DENIED: …)")))
    assert "does not answer" in str(google.meaning(OSError("Couldn't connect to server")))
    assert azure.meaning(OSError("something else")) is None


def test_the_jobs_need_none_of_their_packages() -> None:
    look = "import sys, cataloger.labeling.job; print([name for name in sys.modules if name.startswith(('azure', 'google.cloud.storage'))])"
    done = subprocess.run(
        [sys.executable, "-c", look], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "[]"
