"""The Open Inference Protocol, version 2: requests -> Arrow tables, probabilities -> answers.

With its extension of binary tensors: their bytes follow the JSON text, whose length a header tells.
B rows.
"""

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

HEADER = "Inference-Header-Content-Length"

_TYPES = {
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
    "BOOL": np.dtype("?"),
}
_TEXT = "BYTES"


class BadRequest(Exception):
    """A request that cannot be read; the message names the field."""


class Asked(NamedTuple):
    """A request that was read.

    Attributes:
        outputs: tasks that are wanted; all if empty.
        binary: those whose probabilities are wanted as bytes; None: all.
    """

    id: str | None
    table: pa.Table
    outputs: tuple[str, ...]
    binary: frozenset[str] | None


def parsed_json(body: bytes) -> Any:
    """
    Raises:
        BadRequest: it is no JSON; NaN and infinity are none.
    """

    def refuse(name: str) -> None:
        raise BadRequest(f"body: {name} is no JSON; null stands for what is missing")

    try:
        return json.loads(body, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"body: is no JSON ({error})") from None


def asked(body: bytes, header_bytes: str | None) -> Asked:
    """Read a request.

    Args:
        header_bytes: the length of the JSON text, where binary tensors follow it.

    Raises:
        BadRequest: it is not of the protocol, or its tensors do not fit together.
    """
    size = _header_size(header_bytes, len(body))
    content = parsed_json(body[:size])
    if not isinstance(content, Mapping) or not isinstance(content.get("inputs"), list):
        raise BadRequest("inputs: a list of tensors is needed")
    columns: dict[str, pa.Array] = {}
    rest = memoryview(body)[size:]
    for tensor in content["inputs"]:
        if not isinstance(tensor, Mapping) or not isinstance(tensor.get("name"), str):
            raise BadRequest("inputs: a tensor has a name, a shape, a datatype and data")
        taken = _binary_size(tensor)
        columns[tensor["name"]] = _column(tensor, None if taken is None else rest[:taken])
        rest = rest[taken or 0 :]
    if len({len(column) for column in columns.values()}) > 1:
        sizes = ", ".join(f"{name} {len(column)}" for name, column in columns.items())
        raise BadRequest(f"inputs: tensors have as many rows as each other; found {sizes}")
    outputs = [o for o in content.get("outputs") or () if isinstance(o, Mapping)]
    return Asked(
        content["id"] if isinstance(content.get("id"), str) else None,
        pa.table(columns),
        tuple(str(output.get("name")) for output in outputs),
        _wanted_binary(content, outputs),
    )


def answer(
    name: str, version: str, request: Asked, probabilities: pa.Table
) -> tuple[bytes, dict[str, str]]:
    """Body and headers of an answer.

    Raises:
        BadRequest: an output is wanted that is no task.
    """
    tasks = probabilities.column_names
    wanted = request.outputs or tuple(tasks)
    if unknown := [task for task in wanted if task not in tasks]:
        raise BadRequest(f"outputs: {unknown[0]!r} is no task; allowed: {', '.join(tasks)}")
    outputs, parts = [], []
    for task in wanted:
        values = probabilities[task].to_numpy().astype("<f8")
        output: dict[str, Any] = {"name": task, "datatype": "FP64", "shape": [len(values)]}
        if request.binary is None or task in request.binary:
            parts.append(values.tobytes())
            output["parameters"] = {"binary_data_size": len(parts[-1])}
        else:
            output["data"] = values.tolist()
        outputs.append(output)
    content = {"model_name": name, "model_version": version, "outputs": outputs}
    text = json.dumps(content if request.id is None else {"id": request.id, **content}).encode()
    if not parts:
        return text, {"Content-Type": "application/json"}
    headers = {"Content-Type": "application/octet-stream", HEADER: str(len(text))}
    return b"".join([text, *parts]), headers


def _header_size(header_bytes: str | None, num_bytes: int) -> int:
    if header_bytes is None:
        return num_bytes
    if not header_bytes.isdecimal() or int(header_bytes) > num_bytes:
        raise BadRequest(f"{HEADER}: {header_bytes[:40]!r} is no length within the body")
    return int(header_bytes)


def _binary_size(tensor: Mapping[str, Any]) -> int | None:
    parameters = tensor.get("parameters") or {}
    size = parameters.get("binary_data_size") if isinstance(parameters, Mapping) else None
    if size is not None and (type(size) is not int or size < 0):
        raise BadRequest(f"{tensor['name']}: binary_data_size is no length")
    return size


def _column(tensor: Mapping[str, Any], content: memoryview | None) -> pa.Array:
    """(B,) values, or (B,) lists where the tensor's shape is (B, L)."""
    name, kind, shape = tensor["name"], tensor.get("datatype"), tensor.get("shape")
    if kind != _TEXT and kind not in _TYPES:
        raise BadRequest(f"{name}: datatype {kind!r}; allowed: {', '.join((*_TYPES, _TEXT))}")
    sizes = shape if isinstance(shape, list) else []
    if len(sizes) not in (1, 2) or not all(type(n) is int and n >= 0 for n in sizes):
        raise BadRequest(f"{name}: shape {shape!r}; allowed: [rows] or [rows, values]")
    values = _values(name, kind, tensor.get("data") if content is None else content)
    if len(values) != int(np.prod(sizes)):
        raise BadRequest(f"{name}: {len(values)} values, its shape {sizes} has others")
    if len(sizes) == 1 or sizes[1] == 1:
        return values
    offsets = pa.array(np.arange(sizes[0] + 1, dtype=np.int32) * sizes[1])
    return pa.ListArray.from_arrays(offsets, values)


def _values(name: str, kind: str, data: Any) -> pa.Array:
    try:
        if isinstance(data, memoryview):
            if kind == _TEXT:
                return pa.array(_texts(data))
            return pa.array(np.frombuffer(data, _TYPES[kind]))
        if not isinstance(data, list):
            raise BadRequest(f"{name}: data is a {type(data).__name__}, expected a list")
        flat = [v for part in data for v in part] if data and isinstance(data[0], list) else data
        return pa.array(flat, pa.string() if kind == _TEXT else pa.from_numpy_dtype(_TYPES[kind]))
    except (pa.ArrowException, TypeError, ValueError, struct.error, OverflowError) as error:
        raise BadRequest(f"{name}: data is not of {kind} ({error})") from None


def _texts(data: memoryview) -> list[str]:
    """Texts, each behind its length in four bytes."""
    texts, position = [], 0
    while position < len(data):
        (length,) = struct.unpack_from("<I", data, position)
        position += 4 + length
        if position > len(data):
            raise ValueError("a text is longer than the data")
        texts.append(str(data[position - length : position], "utf-8"))
    return texts


def _wanted_binary(
    content: Mapping[str, Any], outputs: Sequence[Mapping[str, Any]]
) -> frozenset[str] | None:
    """Names of the outputs that are wanted as bytes; None for all."""
    parameters = content.get("parameters")
    everything = isinstance(parameters, Mapping) and parameters.get("binary_data_output") is True
    if everything and not outputs:
        return None
    return frozenset(
        str(output.get("name"))
        for output in outputs
        if (output.get("parameters") or {}).get("binary_data", everything) is True
    )
