"""What all requests of a server share."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial

from pipeline_kit.compose.plugins import load_registry
from pipeline_kit.errors import UsageError, closest_match, for_message
from pipeline_kit.runtime.config import ServeConfig
from pipeline_kit.runtime.pipeline import Pipeline
from pipeline_kit.serve.metrics import ServerMetrics
from pipeline_kit.serve.refused import Refused
from pipeline_kit.serve.served import ServedPipeline

KEY_VARIABLE = "PIPELINE_KIT_API_KEY"


class ServerState:
    """The pipelines of a server by name, its metrics, and whether it is about to end.

    :ivar in_flight: requests that were accepted and are not answered yet.
    """

    def __init__(self, pipelines: Mapping[str, Pipeline], config: ServeConfig) -> None:
        self.config, self.metrics = config, ServerMetrics()
        self.key = _key(config.api_key or os.environ.get(KEY_VARIABLE))
        self.draining = False
        self.in_flight = 0
        self.served = {
            name: ServedPipeline(name, pipe, config, partial(self.metrics.batch, name), partial(self.rejected, name))
            for name, pipe in pipelines.items()
        }
        plugins = dict.fromkeys(plugin for pipe in pipelines.values() for plugin in pipe.recipe.plugins)
        self.registry = load_registry(tuple(plugins), everything=True)
        """All that is installed, and the plugins of the pipelines."""

    @property
    def default(self) -> ServedPipeline:
        """The pipeline that answers where a request names none."""
        return next(iter(self.served.values()))

    def named(self, name: str) -> ServedPipeline:
        """Return the pipeline of a name.

        :raises Refused: 404 if there is none.
        """
        if name in self.served:
            return self.served[name]
        known = tuple(self.served)
        near = closest_match(name, known)
        hint = f" Did you mean '{near}'?" if near else ""
        raise Refused(404, f"there is no pipeline '{for_message(name, 80)}'.{hint} There are: {', '.join(known)}")

    @property
    def ready(self) -> bool:
        """Whether all pipelines have run a batch, and the server is not about to end."""
        return not self.draining and all(served.warm for served in self.served.values())

    @property
    def most_in_flight(self) -> int:
        """How many requests may wait for an answer.

        The other connections are for those who ask whether the server lives, and those who are told to come later.
        """
        return max(1, self.config.max_connections // 2)

    def crowded(self) -> Refused:
        """Return the 429 for one request too many."""
        self.rejected(self.default.name, "queue_full")
        seconds = self.default.retry_after
        message = f"{self.most_in_flight:,} requests wait already, half of serve.max_connections"
        return Refused(429, f"{message}; come back in {seconds} s", retry_after=seconds)

    def exposition(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        return self.metrics.exposition({name: served.batcher.waiting_tokens for name, served in self.served.items()})

    def rejected(self, pipeline: str, reason: str) -> None:
        """Count a request that was refused."""
        self.metrics.rejected.labels(pipeline, reason).inc()


def _key(text: str | None) -> bytes | None:
    """Return the key as clients send it; None if there is none.

    :raises UsageError: for one of white space alone, which nobody can send.
    """
    if not text:
        return None
    key = text.strip().encode("utf-8", "surrogateescape")  # a file with a key often ends with a line break
    if not key:
        raise UsageError(f"the API key holds white space alone; set another one by {KEY_VARIABLE} or serve.api_key")
    return key
