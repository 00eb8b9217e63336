"""Starting quickly."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["no_collection"]


@contextmanager
def no_collection() -> Iterator[None]:
    """Keep the garbage collector still while torch and transformers are imported and a model is loaded.

    They make some millions of objects that live as long as the process. Looking through them again and
    again took a tenth of the time of a cold start; afterwards they are set aside for good.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.freeze()
            gc.enable()
