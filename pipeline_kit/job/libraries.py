"""What a job asks of the libraries that torch computes with: sums in one order, caches of bounded size."""

from __future__ import annotations

import os

__all__ = ["settle_libraries"]

_SETTINGS = {
    # Intel's MKL multiplies layers that are not packed. STRICT makes it add in one order on any number of threads, so
    # that workers write the bytes of one process; see "Conditional Numerical Reproducibility" in its developer guide.
    "MKL_CBWR": "AUTO,STRICT",
    # oneDNN, and torch's layer over it, keep what they compile for each size of a batch, 1,024 at the most: some
    # hundred MB after a million rows. A job meets sizes in no order, so few of them serve as well: measured, 64 cost
    # no time in batches. (One text at a time they do, which is why nothing is set outside of jobs.)
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "LRU_CACHE_CAPACITY": "64",
}


def settle_libraries() -> None:
    """Set the environment variables that the libraries read once, before anything is computed.

    What a user has set is left alone; so is a process in which torch has computed before.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
