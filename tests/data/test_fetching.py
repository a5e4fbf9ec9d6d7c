"""Pictures that lie elsewhere, at servers as they are."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import ClassVar

import pytest

from cataloger.data import fetching
from cataloger.data.fetching import AT_ONCE, ATTEMPTS, LOST_IN_A_ROW, fetch, resolved, versions
from cataloger.data.images import MISSING, MOST_BYTES, TOO_LARGE, UNREACHABLE, Unreadable
from cataloger.infra.storage import locate
from servers import answering


class Odd(BaseHTTPRequestHandler):
    """Answers by the name that is asked for."""

    asked: ClassVar[Counter[str]] = Counter()

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name = self.path.strip("/")
        self.asked[name] += 1
        data, code, headers = b"picture of " + name.encode(), 200, {}
        if name.startswith("down"):
            code = 503
        elif name == "once" and self.asked[name] == 1:
            code = 500
        elif name == "gone":
            code = 404
        elif name == "moved":
            code, headers = 302, {"Location": "/there"}
        elif name == "circle":
            code, headers = 302, {"Location": "/circle"}
        elif name == "no-head" and self.command == "HEAD":
            code = 405
        elif name == "dated":
            headers = {"Last-Modified": "Wed, 25 Nov 2026 10:00:00 GMT"}
        elif name == "tagged":
            headers = {"ETag": '"1"'}
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key, value)
        if name == "trickle":
            self.send_header("Content-Length", "300")
        elif name == "short":
            self.send_header("Content-Length", str(len(data) + 5))
        elif name == "endless":
            pass
        else:
            self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if name == "trickle":
            with contextlib.suppress(OSError):
                for _ in range(300):
                    self.wfile.write(b".")
                    time.sleep(0.1)
        elif self.command == "GET" and code == 200:
            self.wfile.write(data)
            if name == "endless":
                for _ in range(MOST_BYTES // (1 << 20) + 1):
                    self.wfile.write(bytes(1 << 20))

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    Odd.asked.clear()
    monkeypatch.setattr(fetching, "FIRST_WAIT_SECONDS", 0.01)
    monkeypatch.setattr(fetching, "_hosts", fetching._Hosts())
    with answering(Odd) as address:
        yield address


def said(found: list[bytes | Unreadable]) -> list[bytes | str]:
    return [one.status if isinstance(one, Unreadable) else one for one in found]


def test_what_a_server_may_do(server: str) -> None:
    names = ["plain", "once", "gone", "moved", "circle", "short", "endless", "down"]
    assert said(fetch([f"{server}/{name}" for name in names], bytes)) == [
        *(
            b"picture of plain",
            b"picture of once",
            MISSING,
            b"picture of there",
            MISSING,
            UNREACHABLE,
            TOO_LARGE,
            UNREACHABLE,
        ),
    ]
    assert (Odd.asked["once"], Odd.asked["gone"], Odd.asked["down"]) == (2, 1, ATTEMPTS)


def test_a_version_is_a_tag_a_date_or_the_bytes_themselves(server: str) -> None:
    names = ["tagged", "dated", "plain", "no-head", "gone"]
    found = versions([f"{server}/{name}" for name in names])
    assert found[:2] == ['"1"', "16 Wed, 25 Nov 2026 10:00:00 GMT"]
    assert all(isinstance(one, str) and len(one) == 32 for one in found[2:4])
    assert isinstance(found[4], Unreadable)
    assert Odd.asked["tagged"] == 1


def test_nobody_waits_for_ever_for_a_host_that_is_silent(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [f"{server}/down-{number}" for number in range(200)]
    assert said(fetch(places, bytes)) == [UNREACHABLE] * 200
    assert Odd.asked.total() <= ATTEMPTS * (LOST_IN_A_ROW + AT_ONCE)
    assert said(fetch([f"{server}/plain"], bytes)) == [UNREACHABLE]
    monkeypatch.setattr(fetching, "SILENT_SECONDS", 0.0)  # a while later
    assert said(fetch([f"{server}/plain"], bytes)) == [b"picture of plain"]


def test_on_a_disk(working_folder: Path) -> None:
    (working_folder / "a").write_bytes(b"bytes")
    (working_folder / "large").write_bytes(bytes(MOST_BYTES + 1))
    places = [str(working_folder / name) for name in ("a", "large", "none", ".")]
    assert said(fetch(places, bytes)) == [b"bytes", TOO_LARGE, MISSING, MISSING]
    before = versions(places[:1])
    assert versions([f"file://{places[0]}"]) == before
    (working_folder / "a").write_bytes(b"other bytes")
    assert versions(places[:1]) != before
    (working_folder / "a b%.jpg").write_bytes(b"odd name")
    assert said(fetch([(working_folder / "a b%.jpg").as_uri()], bytes)) == [b"odd name"]


def test_what_cannot_be_a_file_is_missing_and_silences_nothing(working_folder: Path, server: str) -> None:
    (working_folder / "a").write_bytes(b"bytes")
    odd = ["data:image/png;base64," + "A" * 5_000, "x" * 300, "a/b", "\0"] * LOST_IN_A_ROW
    assert set(said(fetch([str(working_folder / name) for name in odd], bytes))) == {MISSING}
    assert said(fetch([str(working_folder / "a")], bytes)) == [b"bytes"]


def test_an_answer_of_a_host_ends_its_row_of_losses(server: str) -> None:
    for number in range(2 * LOST_IN_A_ROW):
        fetch([f"{server}/down-{number}"], bytes)
        assert said(fetch([f"{server}/gone"], bytes)) == [MISSING]


def test_a_server_that_trickles_is_given_up(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetching, "MOST_SECONDS", 0.3)
    monkeypatch.setattr(fetching, "ATTEMPTS", 1)
    began = time.monotonic()
    assert said(fetch([f"{server}/trickle"], bytes)) == [UNREACHABLE]
    assert time.monotonic() - began < 5, "of the thirty seconds that it would take"


@pytest.mark.s3
def test_on_s3(s3: str) -> None:
    (locate(f"{s3}/pictures") / "a.jpg").write(b"bytes")
    places = [f"{s3}/pictures/a.jpg", f"{s3}/pictures/none.jpg", "s3:///nobody/a.jpg", "s3://no-such-bucket/a.jpg"]
    assert said(fetch(places[:3], bytes)) == [b"bytes", MISSING, MISSING]
    assert said(fetch(places[3:], bytes)) == [MISSING]
    assert isinstance(versions(places)[0], str)


@pytest.mark.s3
def test_what_s3_refuses_is_unreachable_at_once(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absent or not: who may not list a bucket is not told."""
    asked = []
    info = fetching._info
    monkeypatch.setattr(fetching, "_info", lambda reference: asked.append(reference) or info(reference))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    fetching._bucket.cache_clear()
    try:
        assert said(fetch([f"{s3}/pictures/{name}" for name in range(2 * LOST_IN_A_ROW)], bytes)) == [UNREACHABLE] * 16
        assert len(asked) == 16, "nobody asks again, and the bucket is not taken for silent"
    finally:
        fetching._bucket.cache_clear()


def test_names_are_below_the_catalog() -> None:
    assert resolved("pictures/a.jpg", "s3://shop/catalog") == "s3://shop/catalog/pictures/a.jpg"
    assert resolved("/a.jpg", "/catalog") == "/a.jpg"
    assert resolved("HTTPS://Shop/A.jpg", "/catalog") == "https://Shop/A.jpg"
    assert resolved("a.jpg", "") == "a.jpg"
