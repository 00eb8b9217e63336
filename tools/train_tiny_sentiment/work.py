"""The folder that keeps the slow steps, so that a second student need not repeat them."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from tools.train_tiny_sentiment.data import REQUIRED_FILES


@dataclass(frozen=True)
class Work:
    """A cache whose entries are named by a digest of all that goes into them."""

    folder: Path
    digest: str

    def path(self, name: str) -> Path:
        """Where the result called ``name`` lies."""
        return self.folder / f"{name}-{self.digest}"

    def once(self, name: str, make: Callable[[Path], None]) -> tuple[Path, float]:
        """Make a result unless it is there; return its path and the seconds that making it took."""
        path, clock = self.path(name), self.path(f"{name}-seconds")
        if not clock.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            started = time.monotonic()
            make(path)
            clock.write_text(json.dumps(time.monotonic() - started), "utf-8")
        return path, float(json.loads(clock.read_text("utf-8")))


def open_work(folder: Path, data: Path, base: Path, *settings: object) -> Work:
    """Name the cache after the data, the base model, the grammar and the settings used."""
    digest = hashlib.sha256()
    for path in [*(data / name for name in REQUIRED_FILES), base / "model.safetensors"]:
        digest.update(path.read_bytes())
    grammar = resources.files(__package__).joinpath("grammar")
    for file in sorted(grammar.iterdir(), key=lambda item: item.name):
        digest.update(file.read_bytes())
    digest.update(repr(settings).encode())
    return Work(folder, digest.hexdigest()[:12])
