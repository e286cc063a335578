"""Connections to object stores through pyarrow's file systems, their retries and their errors.

Endpoint and credentials come from where the stores' own tools take them: for S3 the ``AWS_*``
variables and ``~/.aws``, for Google Cloud ``GOOGLE_APPLICATION_CREDENTIALS``, for HDFS
``HADOOP_HOME`` and ``CLASSPATH``. pyarrow is loaded when a store is used: a command that names
places on disks does not wait for it.
"""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, urlsplit

from stem_torchrec.errors import StoreUnreachable, UserError

if TYPE_CHECKING:
    import pyarrow.fs as fs

_S3_OPTIONS = ("endpoint_override", "region", "scheme")
_S3_TRIES = 5
_GCS_RETRY_S = 30.0
# What a store says when it may answer a little later.
_PASSING = (
    *("NETWORK_CONNECTION", "REQUEST_TIMEOUT", "SERVICE_UNAVAILABLE", "SLOW_DOWN", "THROTTLING"),
    *("INTERNAL_FAILURE", "Retry policy exhausted", "HDFS connect failed"),
    # All there is where an answer has no body, as to every question about one file or bucket.
    *("HTTP status 429", "HTTP status 5"),
)


@cache
def open_store(scheme: str, host: str, query: str) -> "fs.FileSystem":
    """The file system of a URL; one per process.

    Raises:
        UserError: it cannot be made, or the query has an option that is not known.
    """
    import pyarrow as pa
    import pyarrow.fs as fs

    url = f"{scheme}://{host}/" + f"?{query}" * bool(query)
    try:
        if scheme == "s3":
            return _open_s3(host, dict(parse_qsl(query)))
        if scheme == "gs" and "retry_limit_seconds" not in query:
            limit = f"retry_limit_seconds={_GCS_RETRY_S}"
            return fs.FileSystem.from_uri(url + ("&" if query else "?") + limit)[0]
        return fs.FileSystem.from_uri(url)[0]
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{url}: cannot be opened ({str(error).splitlines()[0]})") from None


def _open_s3(bucket: str, options: dict[str, str]) -> "fs.S3FileSystem":
    import pyarrow.fs as fs

    for option in options:
        if option not in _S3_OPTIONS:
            raise UserError(
                f"s3://{bucket}: unknown option {option!r}; allowed: {', '.join(_S3_OPTIONS)}"
            )
    environment = os.environ
    endpoint = environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL")
    if endpoint and "endpoint_override" not in options:
        parts = urlsplit(endpoint if "://" in endpoint else f"https://{endpoint}")
        options |= {"endpoint_override": parts.netloc + parts.path.rstrip("/")}
        options.setdefault("scheme", parts.scheme)
    region = environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")
    if region is None and "endpoint_override" not in options and "region" not in options:
        region = fs.resolve_s3_region(bucket)
    options.setdefault("region", region or "us-east-1")
    retry = fs.AwsStandardS3RetryStrategy(max_attempts=s3_tries())
    return fs.S3FileSystem(**options, retry_strategy=retry)


def s3_tries() -> int:
    """How often a request to S3 is sent before it fails: ``AWS_MAX_ATTEMPTS``, or 5."""
    text = os.environ.get("AWS_MAX_ATTEMPTS", "")
    return max(1, int(text)) if text.isdigit() else _S3_TRIES


@contextmanager
def readable_errors(place: object) -> Iterator[None]:
    """Turn a store's error into one of ours that names the URL."""
    import pyarrow as pa

    try:
        yield
    except FileNotFoundError:
        raise UserError(f"{place}: does not exist") from None
    except (OSError, pa.ArrowException) as error:
        raise store_error(place, error) from None


def store_error(place: object, error: Exception) -> UserError:
    """What a store's error means for a person."""
    reason = re.sub(r" \(Request ID: [^)]*\)", "", str(error))
    if is_unreachable(error):
        tries = f" after {s3_tries()} tries" * str(place).startswith("s3://")
        return StoreUnreachable(f"{place}: unreachable{tries} ({reason})")
    if "NO_SUCH_BUCKET" in reason:
        return UserError(f"{place}: the bucket does not exist")
    # Wrong or expired credentials, say. What is wrong with the request itself is an ArrowInvalid.
    kind = StoreUnreachable if isinstance(error, OSError) else UserError
    return kind(f"{place}: {reason}")


def is_unreachable(error: Exception) -> bool:
    return any(sign in str(error) for sign in _PASSING)
