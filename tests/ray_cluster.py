"""A Ray cluster of several nodes on this machine, for the tests of ``runner=ray``: one for all tests of a process."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

STORE_BYTES = 80 * 2**20
CONFIG = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000, "health_check_failure_threshold": 4}
CONFIG |= {"worker_niceness": 0}  # else workers wait for whatever runs beside the tests


class RayCluster:
    """A head without CPUs, and nodes of one CPU each, that can be killed in all ways that nodes die."""

    def __init__(self) -> None:
        from pipeline_kit.job.ray_cluster import import_ray

        import_ray()
        from ray.cluster_utils import Cluster

        with _own_warnings():
            head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
            self._cluster = Cluster(initialize_head=True, head_node_args={**head, "_system_config": CONFIG})
        self._dead: list[Any] = []
        self.address = self._cluster.address

    def nodes(self) -> list[Any]:
        """List the nodes that are alive."""
        for node in list(self._cluster.worker_nodes):
            process = psutil.Process(_raylet(node).pid) if psutil.pid_exists(_raylet(node).pid) else None
            if process is None or process.status() == psutil.STATUS_ZOMBIE:
                self._cluster.worker_nodes.discard(node)
                self._dead.append(_raylet(node))
        return list(self._cluster.worker_nodes)

    def have(self, nodes: int, **variables: str) -> None:
        """Start nodes until there are this many; new ones have these environment variables."""
        for _ in range(nodes - len(self.nodes())):
            with _own_warnings():
                self._cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES, env_vars=variables)

    def workers(self) -> list[psutil.Process]:
        """List the workers of jobs on nodes that are alive, with `ppid`, their node's, in their `info`."""
        raylets = {_raylet(node).pid for node in self.nodes()}
        found = [process for process in psutil.process_iter(["ppid", "cmdline"]) if process.info["ppid"] in raylets]
        return [process for process in found if "ray::RayWorker" in " ".join(process.info["cmdline"] or ())]

    def kill(self, node: Any) -> None:
        """End a node and its workers; it is dead at once, though its processes may take a moment to end."""
        for process in (*psutil.Process(_raylet(node).pid).children(), _raylet(node)):
            process.kill()
        self._cluster.worker_nodes.discard(node)
        self._dead.append(_raylet(node))

    def holds(self, words: Sequence[str]) -> list[str]:
        """Return those of some words that are in the memory of the head or in a log."""
        head = self._cluster.head_node.all_processes["gcs_server"][0].process.pid
        found = set[str]()
        with open(f"/proc/{head}/maps") as maps, open(f"/proc/{head}/mem", "rb", 0) as memory:
            for line in maps:
                start, end = (int(number, 16) for number in line.split()[0].split("-"))
                with suppress(OSError, ValueError, OverflowError):
                    memory.seek(start)
                    data = memory.read(min(end - start, 2**28))
                    found |= {word for word in words if word.encode() in data}
        for path in Path(self._cluster.head_node.get_session_dir_path()).rglob("*.*"):
            data = path.read_bytes() if path.is_file() else b""
            found |= {word for word in words if word.encode() in data}
        return sorted(found)

    def bury(self) -> None:
        """Wait for the raylets that were killed; what is left of their nodes ends then."""
        self.nodes()
        for raylet in self._dead:
            raylet.wait()
        self._dead.clear()

    def close(self) -> None:
        """End all processes."""
        import ray

        ray.shutdown()
        self.bury()
        with _own_warnings():
            self._cluster.shutdown()


def _raylet(node: Any) -> Any:
    return node.all_processes["raylet"][0].process


@contextmanager
def _own_warnings() -> Iterator[None]:
    """Ray starts processes and leaves them and their log files open; that is not for the tests to mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Wait for what another process does; return what `condition` returns."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)
    return found
