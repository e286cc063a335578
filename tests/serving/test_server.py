"""The server as its callers meet it: another process, asked over HTTP."""

import json
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import tritonclient.http as triton

from stem_torchrec.cli import main
from stem_torchrec.serving import Predictor
from tests.support.raw_run import raw_run

ROWS = [
    {"user": "1", "shop": "s1", "tags": "a|b", "price": 0.5},
    {"user": 7, "shop": None, "tags": "", "price": None},
    {"user": "99", "shop": "never", "tags": "b", "price": -1.5},
]


class Serving(NamedTuple):
    """A server that runs."""

    folder: Path
    process: subprocess.Popen
    port: int

    def ask(self, path: str, body: Any = None, headers: dict | None = None) -> tuple[int, Any]:
        """Code and answer."""
        content = json.dumps(body).encode() if not isinstance(body, bytes | None) else body
        url = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, content, headers or {})
        try:
            with urllib.request.urlopen(request) as answer:
                code, text = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            code, text = error.code, error.read()
        return code, json.loads(text) if text[:1] == b"{" else text.decode()


def start(folder: Path, *options: str) -> Serving:
    command = [sys.executable, "-m", "stem_torchrec", "serve", "--model", str(folder)]
    process = subprocess.Popen(
        [*command, "--port", "0", *options], stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    line = process.stderr.readline()
    assert " at http://127.0.0.1:" in line, line + process.stderr.read()
    return Serving(folder, process, int(line.partition("127.0.0.1:")[2].split()[0]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = raw_run(tmp_path_factory.mktemp("served"))
    for tables in ("fp32", "int8"):
        arguments = ["--run", str(folder / "run"), "--out", str(folder / tables)]
        assert main(["export", *arguments, "--tables", tables, "--name", "mine"]) == 0
    return folder


@pytest.fixture(scope="module")
def serving(folder: Path) -> Iterator[Serving]:
    shutil.copytree(folder / "fp32", folder / "served")
    limits = ["--max-body-mb", "1", "--max-rows", "3000"]
    server = start(folder / "served", *limits)
    yield server
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(30) == 0
    assert server.process.stderr is not None
    server.process.stderr.close()


def expected(folder: Path, rows: list[dict] = ROWS) -> list[dict]:
    return Predictor(folder).predict(rows).to_pylist()


def test_rows_as_json(serving: Serving) -> None:
    rows = [{name: row[name] for name in row} for row in ROWS]
    rows[1]["user"] = "7"
    code, answer = serving.ask("/predict", {"rows": rows})
    assert (code, answer["model"]) == (200, "mine")
    for found, wanted in zip(answer["predictions"], expected(serving.folder, rows), strict=True):
        assert found == pytest.approx(wanted, abs=1e-6)
    assert serving.ask("/predict", {"rows": []})[1]["predictions"] == []


def test_the_public_client_of_the_protocol(serving: Serving) -> None:
    client = triton.InferenceServerClient(f"127.0.0.1:{serving.port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("mine")
    metadata = client.get_model_metadata("mine")
    assert [part["name"] for part in metadata["inputs"]] == ["user", "shop", "tags", "price"]
    columns = {"user": ["1", "7", "99"], "shop": ["s1", "", "never"], "tags": ["a|b", "", "b"]}
    wanted = expected(serving.folder, [row | {"user": str(row["user"])} for row in ROWS])
    for binary in (True, False):
        inputs = [triton.InferInput(name, [3], "BYTES") for name in columns]
        for tensor, values in zip(inputs, columns.values(), strict=True):
            tensor.set_data_from_numpy(np.array(values, dtype=object), binary_data=binary)
        price = triton.InferInput("price", [3, 1], "FP32")
        prices = np.array([[0.5], [float("nan")], [-1.5]], np.float32)
        if not binary:
            prices[1] = 0  # NaN is no JSON
        price.set_data_from_numpy(prices, binary_data=binary)
        outputs = [triton.InferRequestedOutput("like", binary_data=binary)]
        found = client.infer("mine", [*inputs, price], outputs=outputs, request_id="7")
        likes = [row["like"] for row in wanted]
        np.testing.assert_allclose(found.as_numpy("like"), likes, atol=1e-6)
        assert found.get_response()["id"] == "7"
    client.close()


@pytest.mark.parametrize(
    ("path", "body", "code", "message"),
    [
        ("/predict", b'{"rows": [', 400, "body: is no JSON"),
        ("/predict", b'{"rows": [{"price": NaN}]}', 400, "NaN is no JSON"),
        ("/predict", {"row": []}, 400, "rows: a list is needed"),
        ("/predict", {"rows": [{"user": 1}]}, 422, "column 'shop' is missing"),
        ("/predict", {"rows": [dict(ROWS[0], price="much")]}, 422, "'price': much"),
        ("/predict", {"rows": [dict(ROWS[0], price={"a": 1})]}, 422, "'price'"),
        ("/predict", {"rows": [ROWS[0], 7]}, 422, "row 1 is a int"),
        ("/predict", {"rows": [{}] * 3001}, 413, "rows: 3,001; allowed are 3,000"),
        ("/predict", b" " * 10_000_000, 413, "body: more than 1,048,576 bytes"),
        ("/v2/models/other/infer", {"inputs": []}, 404, "model 'other' is not here; 'mine' is"),
        ("/v2/models/mine/infer", {"inputs": 1}, 400, "inputs: a list of tensors"),
        ("/v2/models/mine/infer", {"inputs": [{"name": "user"}]}, 400, "user: datatype None"),
    ],
)
def test_mistakes(serving: Serving, path: str, body: Any, code: int, message: str) -> None:
    try:
        found, answer = serving.ask(path, body)
    except (
        urllib.error.URLError,
        ConnectionError,
    ):  # it hangs up on long bodies
        assert code == 413
        return
    assert (found, list(answer)) == (code, ["error"])
    assert message in answer["error"]


def tensor(**changed: Any) -> dict:
    return {"name": "user", "datatype": "BYTES", "shape": [1], "data": ["1"]} | changed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"shape": [2]}, "user: 1 values, its shape [2] has others"),
        ({"shape": [1, 1, 1]}, "user: shape [1, 1, 1]; allowed"),
        ({"datatype": "INT64"}, "user: data is not of INT64"),
        ({"datatype": "FP8"}, "user: datatype 'FP8'; allowed"),
        ({"data": "1"}, "user: data is a str"),
        ({"parameters": {"binary_data_size": -1}}, "user: binary_data_size is no length"),
        ({"parameters": {"binary_data_size": 6}}, "user: data is not of BYTES"),
    ],
)
def test_tensors_that_do_not_fit(serving: Serving, changed: dict, message: str) -> None:
    text = json.dumps({"inputs": [tensor(**changed)]}).encode()
    body = text + struct.pack("<I", 9) + b"ab"
    headers = {"Inference-Header-Content-Length": str(len(text))}
    code, answer = serving.ask("/v2/models/mine/infer", body, headers)
    assert code == 400
    assert message in answer["error"]


def test_a_new_export_is_taken_up_without_a_failed_request(serving: Serving) -> None:
    rows = [row | {"user": str(row["user"])} for row in ROWS]

    def ask(_: int) -> tuple[int, str, float]:
        code, answer = serving.ask("/predict", {"rows": rows})
        return code, answer["version"], answer["predictions"][0]["click"]

    folder = serving.folder
    versions = [Predictor(folder.parent / name).version for name in ("fp32", "int8")]
    with ThreadPoolExecutor(4) as callers:
        first = list(callers.map(ask, range(8)))
        folder.rename(folder.with_name("before"))
        shutil.copytree(folder.parent / "int8", folder.with_name("next"))
        folder.with_name("next").rename(folder)
        found = first
        while found[-1][1] != versions[1]:
            found += callers.map(ask, range(8))
    assert {code for code, *_ in found} == {200}
    of_version = {version: click for _, version, click in found}
    assert list(of_version) == versions
    for name, version in zip(("fp32", "int8"), versions, strict=True):
        wanted = expected(folder.parent / name, rows)[0]["click"]
        assert of_version[version] == pytest.approx(wanted, abs=1e-6)
    figures = serving.ask("/metrics")[1]
    assert 'stem_torchrec_reloads_total{outcome="taken up"} 1.0' in figures
    (folder / "manifest.json").write_text("{}")
    while 'outcome="refused"' not in serving.ask("/metrics")[1]:
        time.sleep(0.1)
    assert ask(0)[:2] == (200, versions[1])


def test_figures_count_what_was_asked(serving: Serving) -> None:
    def rows_counted() -> float:
        text = serving.ask("/metrics")[1]
        lines = [line for line in text.splitlines() if line.startswith("stem_torchrec_rows_total")]
        return float(lines[0].split()[1])

    before = rows_counted()
    serving.ask("/predict", {"rows": [row | {"user": "1"} for row in ROWS]})
    assert rows_counted() == before + 3
    text = serving.ask("/metrics")[1]
    assert 'stem_torchrec_requests_total{code="200",path="/predict"}' in text


def test_too_many_open_requests_are_turned_away_and_open_ones_end_well(folder: Path) -> None:
    serving = start(folder / "int8", "--max-open-requests", "1")
    body = json.dumps({"rows": [{"user": "1", "shop": "a", "tags": "", "price": 1}]}).encode()
    head = f"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", serving.port)) as open_request:
        open_request.sendall(head + body[:5])
        code = 200
        while code == 200:  # until the first one has arrived
            code, answer = serving.ask("/predict", {"rows": []})
        assert (code, answer["error"][:20]) == (429, "1 requests are open;")
        serving.process.send_signal(signal.SIGTERM)
        open_request.sendall(body[5:])
        assert open_request.recv(100).startswith(b"HTTP/1.1 200")
    assert serving.process.wait(30) == 0
    assert serving.process.stderr is not None
    assert serving.process.stderr.read() == ""
    serving.process.stderr.close()


def test_it_does_not_start(
    folder: Path, serving: Serving, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for options, message in (
        (["--model", str(folder / "int8"), "--port", str(serving.port)], "Address already in use"),
        (["--model", str(tmp_path), "--port", "0"], "is no export"),
        (["--model", str(folder / "int8"), "--port", "99999"], "--port: 99999"),
        (["--model", str(folder / "int8"), "--workers", "2"], "unknown option '--workers'"),
    ):
        assert main(["serve", *options]) == 2
        assert message in capsys.readouterr().err
