"""Sums that come out the same whatever the number of threads, so that workers write the bytes of one process."""

from __future__ import annotations

import os

__all__ = ["ask_for_same_sums"]


def ask_for_same_sums() -> None:
    """Ask Intel's MKL, which multiplies layers that are not packed, to add in one order on any number of threads.

    To be called before anything is computed: MKL reads this once. A choice of the user's own is left alone. See
    "Conditional Numerical Reproducibility" in MKL's developer guide; other libraries do not read it.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")
