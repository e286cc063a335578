"""A store that refuses: a server that answers some requests with an error."""

from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import pytest

from stem_torchrec.errors import StoreUnreachable
from stem_torchrec.storage.place import place_of
from stem_torchrec.storage.store_path import StorePath

BEGUN = b"<InitiateMultipartUploadResult><UploadId>u</UploadId></InitiateMultipartUploadResult>"
DONE = b"<CompleteMultipartUploadResult></CompleteMultipartUploadResult>"
PART_BYTES = 10 << 20


class Refusing(ThreadingHTTPServer):
    """Answers the requests that ``refused`` knows with an error, and all others as if well.

    Attributes:
        seen: method and path of each request.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.refused: Callable[[str, str], bool] = lambda method, path: False
        self.answer = 403, b""
        self.seen: list[tuple[str, str]] = []


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Refusing

    def answer(self) -> None:
        self.rfile.read(int(self.headers.get("content-length") or 0))
        chunked = self.headers.get("transfer-encoding") == "chunked"
        while chunked and (size := int(self.rfile.readline().split(b";")[0], 16)) > 0:
            self.rfile.read(size + 2)
        if chunked:
            self.rfile.readline()
        self.server.seen.append((self.command, self.path))
        code, body = 200, b""
        if self.server.refused(self.command, self.path):
            code, body = self.server.answer
        elif self.command == "POST":
            body = BEGUN if "uploads" in self.path else DONE
        self.send_response(code)
        self.send_header("ETag", '"tag"')
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Refusing]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with Refusing() as refusing:
        Thread(target=refusing.serve_forever, daemon=True).start()
        yield refusing
        refusing.shutdown()


def file_at(server: Refusing) -> StorePath:
    address = f"endpoint_override=127.0.0.1%3A{server.server_port}&scheme=http"
    place = place_of(f"s3://bucket/run/metrics.jsonl?{address}")
    assert isinstance(place, StorePath)
    return place


@pytest.mark.parametrize("size", [5, 2 * PART_BYTES])
@pytest.mark.parametrize("part", ["partNumber=1&", "run/metrics.jsonl?uploadId"])
def test_what_the_store_does_not_take_leaves_the_old_file(
    server: Refusing, part: str, size: int
) -> None:
    server.refused = lambda method, path: part in path
    with pytest.raises(StoreUnreachable, match="ACCESS_DENIED"):
        file_at(server).write_bytes(bytes(size))
    assert "DELETE" not in {method for method, _ in server.seen}


@pytest.mark.parametrize(
    ("code", "body", "message"),
    [
        (429, b"", "unreachable after 1 tries"),
        (500, b"", "unreachable after 1 tries"),
        (502, b"", "unreachable after 1 tries"),
        (503, b"", "unreachable after 1 tries"),
        (403, b"", "ACCESS_DENIED"),
        (400, b"<Error><Code>ExpiredToken</Code><Message>old</Message></Error>", "HTTP status 400"),
    ],
)
def test_an_answer_that_tells_nothing_of_the_files(
    server: Refusing, code: int, body: bytes, message: str
) -> None:
    """Whoever looks for a checkpoint must not take it for one that is not there."""
    server.refused = lambda method, path: True
    server.answer = code, body
    place = file_at(server)
    for ask in (place.exists, place.read_bytes, lambda: list(place.parent.iterdir())):
        with pytest.raises(StoreUnreachable, match=message):
            ask()
