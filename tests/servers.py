"""Servers the tests talk to: an S3 server, a proxy in front of it that fails on purpose, an MLflow server."""

import asyncio
import contextlib
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from aiohttp import web

BIN = Path(sys.executable).parent


def free_port() -> int:
    """A port for later: not one of those that the kernel gives to whoever asks for any, nor one of Ray's workers."""
    while True:
        port = random.SystemRandom().randrange(20_000, 32_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def wait_for(url: str, server: subprocess.Popen[bytes] | None, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            urllib.request.urlopen(url, timeout=5).close()
            return
        except OSError:
            assert server is None or server.poll() is None, f"the server for {url} has ended"
            assert time.monotonic() < deadline, f"nothing answers at {url}"
            time.sleep(0.1)


def kill_with_descendants(process: subprocess.Popen[Any]) -> None:
    """SIGKILL for a whole machine, so to speak: Ray's agents, for one, outlive their driver."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    psutil.wait_procs(family, timeout=30)


@contextlib.contextmanager
def seaweed(folder: Path, port: int, key: str, secret: str) -> Iterator[subprocess.Popen[bytes]]:
    """A real S3 server (SeaweedFS) on this machine, with one account. It rejects a wrong secret and does conditional PUTs."""
    (folder / "data").mkdir(parents=True)
    ports = [
        f"-{name}={free_port()}" for name in ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc")
    ]
    ports += [f"-{name}={free_port()}" for name in ("filer.port", "filer.port.grpc", "s3.port.grpc")]
    command = [
        str(BIN / "weed"),
        "-logdir=.",
        "server",
        "-dir=data",
        "-ip=127.0.0.1",
        "-ip.bind=127.0.0.1",
        "-s3",
        f"-s3.port={port}",
    ]
    command += [
        *ports,
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-s3.autoCreateBucket=false",
        "-master.telemetry=false",
    ]
    command += ["-master.volumeSizeLimitMB=64", "-volume.max=20", "-volume.preStopSeconds=0"]
    account = {"AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
    with open(folder / "log", "wb") as log:
        server = subprocess.Popen(command, cwd=folder, env={**os.environ, **account}, stdout=log, stderr=log)
    try:
        wait_for(f"http://127.0.0.1:{port}/healthz", server)
        yield server
    finally:
        server.kill()  # SIGTERM takes 15 s
        server.wait()
        for used in [port, *(flag.rsplit("=")[-1] for flag in ports)]:
            for socket_file in Path("/tmp").glob(f"seaweedfs-*-{used}.sock"):
                socket_file.unlink()


@contextlib.contextmanager
def mlflow_server(folder: Path, store: str | None = None) -> Iterator[tuple[str, Callable[[], None]]]:
    """An MLflow server, with a store in the folder unless another is named: its address, and how to kill it."""
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [str(BIN / "mlflow"), "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += [
        "--backend-store-uri",
        store or f"sqlite:///{folder}/mlflow.db",
        "--artifacts-destination",
        str(folder / "artifacts"),
    ]
    with open(folder / "log", "wb") as log:
        # Its job queues, which nothing here uses, would stay behind in shared memory.
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def kill() -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(server.pid, 9)
        server.wait()

    try:
        wait_for(f"http://127.0.0.1:{port}/health", server, 120)
        yield f"http://127.0.0.1:{port}", kill
    finally:
        kill()


CODES = {
    301: "PermanentRedirect",
    404: "NoSuchKey",
    409: "ConditionalRequestConflict",
    412: "PreconditionFailed",
    503: "SlowDown",
}
# What a fault does to one request: None lets it pass, a status answers it, "reset" cuts the line before the server
# hears of it, "lose" after the server has done it.
Fault = Callable[[web.Request], int | str | None]


@contextlib.contextmanager
def fault_proxy(target: str, fault: Fault) -> Iterator[str]:
    """A reverse proxy in front of an S3 server; `fault` sees each request first. Its address."""
    port, loop, started = free_port(), asyncio.new_event_loop(), threading.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        body = await request.read()
        todo = fault(request)
        if todo == "reset":
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if isinstance(todo, int):
            headers = {"x-amz-bucket-region": "eu-west-3"} if todo == 301 else {}
            code = CODES.get(todo, "InternalError")
            return web.Response(status=todo, headers=headers, text=f"<Error><Code>{code}</Code></Error>")
        headers = {key: value for key, value in request.headers.items() if key.lower() != "transfer-encoding"}
        async with (
            aiohttp.ClientSession(auto_decompress=False, skip_auto_headers=("User-Agent", "Content-Type")) as session,
            session.request(
                request.method,
                aiohttp.client.URL(target + request.raw_path, encoded=True),
                headers=headers,
                data=body,
                allow_redirects=False,
            ) as answer,
        ):
            data = await answer.read()
            if todo == "lose":
                assert request.transport is not None
                request.transport.abort()
            kept = {k: v for k, v in answer.headers.items() if k.lower() not in ("transfer-encoding", "connection")}
            if request.method == "HEAD":
                response = web.Response(status=answer.status, headers=kept)
            else:
                kept.pop("Content-Length", None)
                response = web.Response(status=answer.status, headers=kept, body=data)
            return response

    async def serve() -> None:
        application = web.Application(client_max_size=1 << 30)
        application.router.add_route("*", "/{path:.*}", handle)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        started.set()
        while not stop.is_set():
            await asyncio.sleep(0.05)
        await runner.cleanup()

    stop = threading.Event()
    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert started.wait(10)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        stop.set()
        thread.join(10)
        loop.close()


@contextlib.contextmanager
def answering(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """An HTTP server of this process with these answers: its address."""
    served = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    served.daemon_threads = True
    thread = threading.Thread(target=served.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{served.server_port}"
    finally:
        served.shutdown()
        thread.join()
        served.server_close()
