"""What ``/metrics`` tells, as Prometheus reads it."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_ROWS = (1, 4, 16, 64, 256, 1024, 4096, 16384)


class Figures:
    """Counts of one server."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        name = "stem_torchrec"
        self.requests = Counter(
            f"{name}_requests", "answers by path and code", ["path", "code"], registry=registry
        )
        self.seconds = Histogram(
            f"{name}_request_seconds",
            "from a request to its answer",
            ["path"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.rows = Counter(f"{name}_rows", "rows that were predicted", registry=registry)
        self.batch_rows = Histogram(
            f"{name}_batch_rows", "rows computed at once", buckets=_ROWS, registry=registry
        )
        self.open = Gauge(f"{name}_open_requests", "requests at work", registry=registry)
        self.reloads = Counter(
            f"{name}_reloads", "exports put in place, by outcome", ["outcome"], registry=registry
        )

    def text(self) -> bytes:
        return generate_latest(self._registry)
