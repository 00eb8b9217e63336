"""Options of the groups ``padding``, ``batching``, ``device``, ``runner``, ``serve`` and ``job``: how work is done."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from pipeline_kit.contract.options import option


@dataclass
class PaddingConfig:
    """Options of the group ``padding``; those of another policy extend them."""

    name: str = option("longest", "the policy, such as longest, max_length, multiple_of, none; see: pipeline-kit ls")
    max_length: int | None = option(
        None, "tokens to pad to; null takes the checkpoint's own limit", minimum=1, maximum=2**24
    )
    multiple_of: int = option(8, "round the longest row up to a multiple of this many tokens", minimum=1, maximum=4096)
    side: Literal["left", "right"] | None = option(None, "null takes the checkpoint's own side")


@dataclass
class BatchingConfig:
    """Options of the group ``batching``; those of another policy extend them."""

    name: str = option(
        "token_budget",
        "the policy, such as token_budget (sorted by length, cut by tokens) or fixed (as they come, cut by rows)",
    )
    max_tokens: int | None = option(
        None,
        "tokens of a batch after padding; null: 1024 on a CPU (4096 in bfloat16 on AMX), 16384 on a GPU, "
        "no limit if the model writes text; not used by fixed",
        minimum=1,
        maximum=2**24,
    )
    max_rows: int | None = option(
        None,
        "rows of a batch; null: no limit for token_budget (256 if the model writes text), 8 for fixed",
        minimum=1,
        maximum=2**20,
    )
    window: int = option(
        2048, "rows looked at when sorting, and the most read ahead of a stream", minimum=1, maximum=2**20
    )
    deduplicate: bool = option(
        True, "run texts of a window that are the same tokens once, where the model is deterministic"
    )


@dataclass
class DeviceConfig:
    """Options of the group ``device``; those of another kind of device extend them."""

    name: str = option("auto", "the kind of device: cpu, cuda, mps; auto takes cuda, then mps, then cpu")
    index: int | None = option(None, "which GPU, from 0; null takes the current one", minimum=0, maximum=1023)
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "auto is float32, on a GPU the dtype the checkpoint was saved in"
    )
    threads: int | None = option(
        None, "CPU threads an operator may use; null leaves torch's own", minimum=1, maximum=1024
    )


@dataclass
class RunnerConfig:
    """Options of the group ``runner``; those of another runner extend them.

    None of them changes a result but ``mixed=allow``, so a job may be resumed with others.
    """

    name: str = option("local", "where shards are made; local: by processes of this machine")
    workers: int = option(
        1, "processes that share a job; each loads the model, devices and threads are divided", minimum=1, maximum=256
    )
    batch_timeout: float | None = option(
        None,
        "of a job: seconds a stage may take for one batch before its process is ended; null: any",
        minimum=0.001,
        maximum=31_536_000,
    )
    retries: int = option(2, "how often to retry a call after a transient error", minimum=0, maximum=100)
    retry_delay: float = option(
        0.5, "seconds before the first of those, about; before each further one twice as long", minimum=0, maximum=3600
    )
    mixed: Literal["refuse", "allow"] = option(
        "refuse",
        "of a job: whether to use machines or workers of another kind than it began on; allow: bytes may differ",
    )


@dataclass
class RayRunnerConfig(RunnerConfig):
    """Options of ``runner=ray``."""

    workers: int = option(1, "actors that share a job; each loads the model", minimum=1, maximum=100_000)
    address: str | None = option(
        None, "HOST:PORT of a cluster; null: RAY_ADDRESS, else a cluster on this machine, which is started if need be"
    )
    cpus_per_worker: int = option(1, "CPUs of each worker, and its threads", minimum=1, maximum=1024)
    gpus_per_worker: float = option(0, "GPUs of each worker, such as 1 or 0.5", minimum=0, maximum=64)
    attempts: int = option(4, "how many workers may die with one shard before the job ends", minimum=1, maximum=1000)
    speculate: bool = option(True, "whether idle workers make the last shards too, for the first result to count")


@dataclass
class ServeConfig:
    """Options of the group ``serve``: how ``pipeline-kit serve`` answers. None of them changes a result."""

    host: str = option("127.0.0.1", "the address to listen on; 0.0.0.0 is every one of this machine, set a key then")
    port: int = option(8000, "the port to listen on; 0 takes a free one", minimum=0, maximum=65_535)
    api_key: str | None = option(
        None,
        "what clients have to send as their bearer; null: the variable PIPELINE_KIT_API_KEY, if it is set",
        secret=True,
    )
    max_waiting_tokens: int | None = option(
        None,
        "tokens that may wait before a request is refused with 429; null: what takes 10 s at the measured speed",
        minimum=1,
        maximum=2**40,
    )
    deadline: float = option(
        60.0, "seconds after which a request that waits is answered 504", minimum=0.01, maximum=86_400
    )
    max_inputs: int = option(1024, "inputs of a request", minimum=1, maximum=2**20)
    max_body_bytes: int = option(4 * 2**20, "bytes of a request's body", minimum=1024, maximum=2**31)
    read_timeout: float = option(
        10.0, "seconds in which a request's header, and then its body, has to come", minimum=0.1, maximum=3600
    )
    max_connections: int = option(1024, "connections that may be open at a time", minimum=1, maximum=2**20)
    drain_timeout: float = option(
        30.0, "seconds in which accepted work is finished after SIGTERM or ctrl-c", minimum=0, maximum=3600
    )
    cors_origins: list[str] = option([], "pages of other sites that may send requests, such as https://app.example.com")
    log: Literal["text", "json", "none"] = option("text", "a line on stderr for each request")
    log_texts: bool = option(False, "whether those lines hold what users sent")


_SHARE = re.compile(r"(\d{1,3}(?:\.\d{1,6})?)\s*%", re.ASCII)


@dataclass
class JobConfig:
    """Options of the group ``job``. None of them changes a result, so a job may be resumed with others."""

    max_failed_rows: int | str | None = option(
        0, "rows that may fail before the job stops: a number, a share of those done such as '1%', null for any"
    )
    lease: float = option(
        60.0, "in a store: seconds after which a lock that its job has not renewed is free", minimum=0.1
    )

    def __post_init__(self) -> None:
        """Refuse what is neither a number nor a share.

        :raises ValueError: saying what is allowed.
        """
        value = self.max_failed_rows
        if isinstance(value, str) and value.isascii() and value.isdigit():
            self.max_failed_rows = int(value)
        elif isinstance(value, str) and (_SHARE.fullmatch(value) is None or self.share_of(value) > 1):
            raise ValueError(f"max_failed_rows '{value[:40]}' is not a number, a share such as '1%', or null.")
        elif isinstance(value, int) and value < 0:
            raise ValueError(f"max_failed_rows {value} is less than 0; null allows any number.")

    @staticmethod
    def share_of(text: str) -> float:
        """Return the share that `text` stands for: ``"1%"`` is 0.01."""
        return float(text.replace("%", "").strip()) / 100

    def allows(self, failed: int, rows: int) -> bool:
        """Return whether a job may continue after `failed` of `rows` rows failed."""
        if self.max_failed_rows is None:
            return True
        if isinstance(self.max_failed_rows, str):
            return failed <= self.share_of(self.max_failed_rows) * rows
        return failed <= self.max_failed_rows
