"""What a server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from pipeline_kit.contract.types import RunStats

__all__ = ["CONTENT_TYPE_LATEST", "ServerMetrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_COUNTS = tuple(2**power for power in range(15))
_SHARES = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)


class ServerMetrics:
    """The counters of one server; each metric has the label ``pipeline``, and what is no pipeline's has it empty."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry(auto_describe=True)
        of, name = ["pipeline"], "pipeline_kit_"
        self.requests = Counter(f"{name}requests", "Requests answered", [*of, "route", "status"], registry=registry)
        self.request_seconds = Histogram(
            f"{name}request_seconds", "From a request's header to its answer", of, buckets=_SECONDS, registry=registry
        )
        self.stage_seconds = Counter(f"{name}stage_seconds", "Time in each stage", [*of, "stage"], registry=registry)
        self.waiting = Gauge(f"{name}waiting_tokens", "Tokens that wait for the model", of, registry=registry)
        self.batch_rows = Histogram(f"{name}batch_rows", "Rows of a batch", of, buckets=_COUNTS, registry=registry)
        self.batch_tokens = Histogram(
            f"{name}batch_tokens", "Tokens of a batch, without padding", of, buckets=_COUNTS, registry=registry
        )
        self.padding_share = Histogram(
            f"{name}padding_share", "Share of padding in a batch", of, buckets=_SHARES, registry=registry
        )
        self.rejected = Counter(f"{name}rejected", "Requests refused", [*of, "reason"], registry=registry)

    def batch(self, pipeline: str, rows: int, stats: RunStats) -> None:
        """Count a call of a stage; one of the model has rows."""
        if rows:
            self.batch_rows.labels(pipeline).observe(rows)
            self.batch_tokens.labels(pipeline).observe(stats.tokens)
            self.padding_share.labels(pipeline).observe(stats.padding_share)
        for stage, seconds in stats.seconds.items():
            self.stage_seconds.labels(pipeline, stage).inc(seconds)

    def exposition(self, waiting: Mapping[str, int]) -> bytes:
        """Return all of it in Prometheus' text format.

        :param waiting: the tokens that wait at this moment, by pipeline.
        """
        for pipeline, tokens in waiting.items():
            self.waiting.labels(pipeline).set(tokens)
        return generate_latest(self.registry)
