"""``serve``: an export over HTTP."""

import argparse
from collections.abc import Sequence
from importlib.util import find_spec

from stem_torchrec.cli.options import Commands, add_command, local_place, positive
from stem_torchrec.errors import UserError, shown

_NEEDED = ("fastapi", "uvicorn", "prometheus_client")


def add_serve(commands: Commands) -> None:
    text = "an export over HTTP: the Open Inference Protocol (v2), and rows as JSON"
    command = add_command(commands, "serve", text, _PATHS)
    command.add_argument(
        "--model", type=local_place, required=True, metavar="DIR", help="folder of an export"
    )
    command.add_argument("--host", default="127.0.0.1", help="address to listen at")
    command.add_argument("--port", type=int, default=8000, help="port; 0: any that is free")
    for name, default, text in (
        ("body-mb", 8, "megabytes of one request"),
        ("rows", 8192, "rows of one request"),
        ("open-requests", 256, "requests at once; further ones are answered with 429"),
        ("time-s", 10, "seconds from a request to its answer"),
    ):
        command.add_argument(
            f"--max-{name}", type=positive, default=default, metavar="N", help=f"most {text}"
        )
    command.set_defaults(run=serve)


_PATHS = """paths:
  POST /predict                  {"rows": [{"column": value, ...}, ...]}
  POST /v2/models/NAME/infer     tensors by column, as JSON or binary
  GET  /v2, /v2/health/ready, /v2/models/NAME, /metrics

A new export that is put in the folder's place is taken up; SIGTERM ends the server when open
requests are answered."""


def serve(options: argparse.Namespace, rest: Sequence[str]) -> None:
    if rest:
        raise UserError(f"serve: unknown option {shown(rest[0])}; see serve --help")
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise UserError(
            f"serve: {missing[0]} is not installed; pip install 'stem-torchrec[serve]' does that"
        )
    from stem_torchrec.console import print_note
    from stem_torchrec.serving.server.limits import Limits
    from stem_torchrec.serving.server.serve import serve as serve_export

    limits = Limits(
        body_bytes=options.max_body_mb << 20,
        rows=options.max_rows,
        open_requests=options.max_open_requests,
        time_s=options.max_time_s,
    )
    serve_export(options.model, options.host, options.port, limits, print_note)
