"""A Ray cluster: joining it, and the workers there as the driver sees them."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, final

from pipeline_kit.contract.types import RunStats
from pipeline_kit.errors import UsageError, for_message, hidden
from pipeline_kit.job.kind import installed, machine_kind
from pipeline_kit.job.ray_worker import RayWorker, WorkerReport, last_lines
from pipeline_kit.job.shard import ShardOffer, ShardTask
from pipeline_kit.runtime.config import RayRunnerConfig

_SETTINGS = {
    "RAY_DEDUP_LOGS_SKIP_REGEX": "^",  # messages of nodes about deaths, which Ray prints on stdout
    "RAY_USAGE_STATS_ENABLED": "0",
}
SECONDS_TO_CONNECT = 5.0
SECONDS_FOR_LINES, SECONDS_TO_DESCRIBE = 5.0, 60.0
_STORE_BYTES = 100 * 2**20
"""The object store of a cluster that is started here: no data of a job lies there."""


def import_ray() -> Any:
    """Import Ray, quiet.

    :raises UsageError: if it is not installed.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise UsageError(f"runner=ray needs ray: pip install 'pipeline-kit[ray]' ({error})") from error
    return ray


def join(address: str | None) -> bool:
    """Connect this process to a cluster; start one if no address is known. Return whether there was no connection.

    :raises UsageError: if the address is not that of a cluster.
    """
    ray = import_ray()
    if ray.is_initialized():
        return False
    address = address or os.environ.get("RAY_ADDRESS") or None
    started = address is None
    if address is None:
        with suppress(OSError):  # written by `ray start` on this machine
            address = Path(tempfile.gettempdir(), "ray", "ray_current_cluster").read_text(encoding="utf-8").strip()
    if address:
        try:
            _probe(address)
        except UsageError:
            if not started:
                raise
            address = None
    options = {"address": address} if address else {"address": "local", "object_store_memory": _STORE_BYTES}
    with _own_signals(), _no_command_line(ray):
        try:
            ray.init(
                **options, log_to_driver=False, include_dashboard=None if address else False, logging_level="ERROR"
            )
        except Exception as error:
            where = f"runner.address={address}" if address else "a cluster on this machine"
            raise UsageError(
                f"runner=ray: {where}: cannot be used: {for_message(hidden(str(error)), 500)}\n"
                "  A job is started on a machine that is a node of the cluster; see docs/scale.md"
            ) from error
    return True


@dataclass(frozen=True)
class NodeReport:
    """A node of a cluster.

    :param found: the versions and the kind of machine that a worker there would have; or what went wrong.
    """

    name: str
    cpus: float
    gpus: float
    found: tuple[Mapping[str, Any], Mapping[str, Any]] | str


def nodes_of(address: str) -> tuple[str, list[NodeReport]]:
    """Join a cluster and ask each node that can have workers what is there; return Ray's version too.

    :raises UsageError: if the address is not that of a cluster.
    """
    ray = import_ray()
    joined = join(address)
    try:
        found = [node for node in ray.nodes() if node["Alive"]]
        asked = {node["NodeID"]: _on_node(node["NodeID"], _described).remote() for node in found}
        reports = []
        for node in found:
            total = node["Resources"]
            name = f"{node['NodeManagerAddress']} ({node['NodeID'][:12]})"
            try:
                answer = ray.get(asked[node["NodeID"]], timeout=SECONDS_TO_DESCRIBE)
            except ray.exceptions.RayError as error:
                answer = reason_of(error)
            reports.append(NodeReport(name, total.get("CPU", 0.0), total.get("GPU", 0.0), answer))
        return str(ray.__version__), reports
    finally:
        if joined:
            ray.shutdown()


def _described() -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    from pipeline_kit.job.run import limit_library_caches

    limit_library_caches()  # as workers do, since a kind of machine includes what these variables allow
    return installed(), machine_kind()


def _on_node(node: str, function: Callable[..., Any]) -> Any:
    """Return a function as a task that runs on one node, whether its CPUs are taken or not."""
    ray = import_ray()
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    there = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=there)


def _probe(address: str) -> None:
    """See that something listens at an address: Ray itself tries for a minute.

    :raises UsageError: if not.
    """
    host, colon, port = address.rpartition(":")
    if "://" in address or not colon or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise UsageError(
            f"runner.address='{for_message(hidden(address), 80)}' is not HOST:PORT of a cluster's head, such as "
            "10.0.0.1:6379; the addresses of Ray Client, ray://..., are not for jobs"
        )
    try:
        with socket.socket() as probe:
            probe.settimeout(SECONDS_TO_CONNECT)
            code = probe.connect_ex((host, int(port)))
    except OSError as error:
        code = error.errno or -1
    if code:
        reason = os.strerror(code) if code > 0 else "no such host"
        raise UsageError(f"runner.address={address}: no cluster answers there ({reason}); see: ray status")


@contextmanager
def _no_command_line(ray: Any) -> Iterator[None]:
    """Keep Ray from writing the command line of this process, which may hold secrets, into the cluster's state."""
    utils = ray._private.utils
    before, utils.get_entrypoint_name = utils.get_entrypoint_name, lambda: "pipeline-kit"
    try:
        yield
    finally:
        utils.get_entrypoint_name = before


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep the handlers of signals, which Ray replaces."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


LOADING, IDLE = "loading", "idle"


@final
class RemoteWorker:
    """A worker on a cluster, as the driver sees it.

    :ivar report: what it is; None before it has answered.
    :ivar loaded: whether it can make shards.
    :ivar part: the part of the input that it goes through.
    :ivar tasks: the shards that it was given and has not returned, by number; it makes them in this order.
    :ivar made: those of them that it has made and not written; `offers` of those that wait for the ledger.
    :ivar live: the counts of the shard in hand, `entered` the stages it is in, both at the time `looked`.
    """

    def __init__(self, number: int, options: RayRunnerConfig) -> None:
        """Ask the cluster for a process; this does not wait for it."""
        ray = import_ray()
        self.number = number
        self.report: WorkerReport | None = None
        self.loaded = False
        self.part: int | None = None
        self.tasks: dict[int, ShardTask] = {}
        self.made: set[int] = set()
        self.offers: dict[int, ShardOffer] = {}
        self.live = RunStats()
        self.looked = monotonic()
        actor = ray.remote(
            num_cpus=options.cpus_per_worker,
            num_gpus=options.gpus_per_worker,
            max_restarts=0,  # a new actor is a new name: what the old one still does cannot be taken for its work
            max_task_retries=0,
            concurrency_groups={"beside": 1},
        )(RayWorker)
        self._actor = actor.remote()

    def call(self, method: str, *args: Any) -> Any:
        """Begin a call; return what Ray knows it by."""
        options = {"concurrency_group": "beside"} if method in ("index", "status", "write") else {}
        return getattr(self._actor, method).options(**options).remote(*args)

    @property
    def head(self) -> int | None:
        """The shard that it is making."""
        return next((number for number in self.tasks if number not in self.made), None)

    @property
    def work(self) -> str:
        """What it is doing, for messages."""
        if self.head is not None:
            return f"shard {self.head}"
        if self.part is not None:
            return f"indexing file {self.part} of the input"
        return IDLE if self.loaded else LOADING

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return f"worker {self.number}" + ("" if self.report is None else f", {self.report.place}")

    def lines(self) -> str:
        """Read the last lines that it wrote, from its machine if that is another one."""
        report = self.report
        if report is None or not report.log:
            return ""
        if os.path.exists(report.log):
            return last_lines(report.log)
        ray = import_ray()
        try:
            return str(ray.get(_on_node(report.node, last_lines).remote(report.log), timeout=SECONDS_FOR_LINES))
        except ray.exceptions.RayError:
            return ""

    def end(self) -> None:
        """End the process at once, whatever it does."""
        ray = import_ray()
        with suppress(ray.exceptions.RayError, ValueError):
            ray.kill(self._actor)


def reason_of(error: Exception) -> str:
    """Return in one line why Ray lost a worker."""
    lines = [line for line in str(error).splitlines()[1:] if line.strip() and not line.startswith("\t")]
    return for_message(hidden(" ".join(lines) or str(error)), 200)
