"""The paths of the server. A mistake of the caller is answered with its code and one message."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Any

import pyarrow as pa
from fastapi import FastAPI, Request, Response

from stem_torchrec import __version__
from stem_torchrec.errors import UserError
from stem_torchrec.serving.predictor import Predictor
from stem_torchrec.serving.server import protocol
from stem_torchrec.serving.server.batching import Batcher
from stem_torchrec.serving.server.current import CurrentModel
from stem_torchrec.serving.server.figures import Figures
from stem_torchrec.serving.server.limits import Limits
from stem_torchrec.serving.server.protocol import BadRequest

_ENCODERS = 2
"""Threads in which raw values become ids while others are computed."""

Answer = Callable[[Request], Awaitable[Response]]


class Refused(Exception):
    """A request beyond the limits."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class Server:
    """Answers requests by the export that is in place."""

    def __init__(self, current: CurrentModel, limits: Limits, figures: Figures) -> None:
        self._current = current
        self._limits = limits
        self._figures = figures
        self._batcher = Batcher(limits.batch_rows, figures.batch_rows.observe)
        self._encoders = ThreadPoolExecutor(_ENCODERS, "encode")
        self._open = 0

    def app(self) -> FastAPI:
        """The paths."""
        app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
        questions: tuple[tuple[str, Answer], ...] = (
            ("/v2", self._about_server),
            ("/v2/health/live", self._ready),
            ("/v2/health/ready", self._ready),
            ("/v2/models/{name}", self._about_model),
            ("/v2/models/{name}/ready", self._about_model),
            ("/metrics", self._metrics),
        )
        for path, answer in questions:
            app.add_api_route(path, _told(answer), methods=["GET"], response_model=None)
        for path, work in (("/v2/models/{name}/infer", self._infer), ("/predict", self._predict)):
            limited = _told(self._limited(path, work))
            app.add_api_route(path, limited, methods=["POST"], response_model=None)
        return app

    def close(self) -> None:
        self._batcher.close()
        self._encoders.shutdown()
        self._current.close()

    async def _ready(self, request: Request) -> Response:
        return Response()

    async def _metrics(self, request: Request) -> Response:
        return Response(self._figures.text(), media_type="text/plain; version=0.0.4")

    async def _about_server(self, request: Request) -> Response:
        extensions = ["binary_tensor_data"]
        return _json({"name": "stem_torchrec", "version": __version__, "extensions": extensions})

    async def _about_model(self, request: Request) -> Response:
        predictor = self._named(request)
        about = predictor.about
        return _json(
            {
                "name": about.name,
                "versions": [predictor.version],
                "platform": "pytorch_torch_export",
                "inputs": [_about_input(predictor, name) for name in predictor.inputs],
                "outputs": [
                    {"name": task, "datatype": "FP64", "shape": [-1]} for task in about.tasks
                ],
            }
        )

    async def _infer(self, request: Request) -> Response:
        predictor = self._named(request)
        body = await self._body(request)
        asked = protocol.asked(body, request.headers.get(protocol.HEADER))
        found = await self._probabilities(predictor, asked.table, asked.table.num_rows)
        about = predictor.about
        content, headers = protocol.answer(about.name, predictor.version, asked, found)
        return Response(content, headers=headers)

    async def _predict(self, request: Request) -> Response:
        predictor = self._current.predictor
        content = protocol.parsed_json(await self._body(request))
        rows = content.get("rows") if isinstance(content, dict) else None
        if not isinstance(rows, list):
            raise BadRequest('rows: a list is needed: {"rows": [{"column": value, ...}, ...]}')
        found = await self._probabilities(predictor, rows, len(rows))
        return _json(
            {
                "model": predictor.about.name,
                "version": predictor.version,
                "predictions": _rows(found),
            }
        )

    async def _probabilities(self, predictor: Predictor, rows: Any, num_rows: int) -> pa.Table:
        if num_rows > self._limits.rows:
            raise Refused(413, f"rows: {num_rows:,}; allowed are {self._limits.rows:,} a request")
        loop = asyncio.get_running_loop()
        inputs = await loop.run_in_executor(self._encoders, predictor.encode, rows)
        logits = await asyncio.wrap_future(self._batcher.submit(predictor, inputs))
        self._figures.rows.inc(num_rows)
        return predictor.table_of(logits)

    async def _body(self, request: Request) -> bytes:
        limit, parts, size = self._limits.body_bytes, [], 0
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise Refused(413, f"body: more than {limit:,} bytes")
            parts.append(part)
        return b"".join(parts)

    def _named(self, request: Request) -> Predictor:
        predictor, name = self._current.predictor, request.path_params["name"]
        if name != predictor.about.name:
            raise Refused(404, f"model {name[:80]!r} is not here; {predictor.about.name!r} is")
        return predictor

    def _limited(self, path: str, work: Answer) -> Answer:
        """The work within the limits, and counted."""
        figures, limits = self._figures, self._limits

        async def answer(request: Request) -> Response:
            start, code = perf_counter(), 500
            if self._open >= limits.open_requests:
                figures.requests.labels(path, 429).inc()
                raise Refused(429, f"{limits.open_requests} requests are open; try again later")
            self._open += 1
            figures.open.set(self._open)
            try:
                response = await asyncio.wait_for(work(request), limits.time_s)
                code = response.status_code
                return response
            except TimeoutError:
                code = 504
                raise Refused(504, f"not answered within {limits.time_s:g} s") from None
            except Exception as error:
                code = _code(error)
                raise
            finally:
                self._open -= 1
                figures.open.set(self._open)
                figures.requests.labels(path, code).inc()
                figures.seconds.labels(path).observe(perf_counter() - start)

        return answer


def _told(answer: Answer) -> Answer:
    """The answer, or what was wrong with the request."""

    async def told(request: Request) -> Response:
        try:
            return await answer(request)
        except (BadRequest, Refused, UserError) as error:
            return _json({"error": str(error)}, _code(error))

    return told


def _code(error: Exception) -> int:
    if isinstance(error, Refused):
        return error.code
    return 400 if isinstance(error, BadRequest) else 422 if isinstance(error, UserError) else 500


def _json(content: dict[str, Any], code: int = 200) -> Response:
    return Response(json.dumps(content), status_code=code, media_type="application/json")


def _rows(table: pa.Table) -> list[dict[str, float]]:
    """As ``to_pylist``, which goes value by value."""
    names = table.column_names
    columns = (column.to_numpy().tolist() for column in table.columns)
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _about_input(predictor: Predictor, name: str) -> dict[str, Any]:
    """Raw values are texts, whatever else is taken for one; ids and numbers are what they are."""
    if predictor.about.has_encoder:
        return {"name": name, "datatype": "BYTES", "shape": [-1]}
    kind = predictor.about.feature(name).kind
    shape = [-1, -1] if kind == "bag" else [-1]
    return {"name": name, "datatype": "FP32" if kind == "dense" else "INT64", "shape": shape}
