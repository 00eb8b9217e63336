"""Starting: quickly, and with names outside ASCII."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

__all__ = ["no_collection", "use_utf8"]

_OWN_SCRIPTS = ("pipeline-kit", "pipeline_kit/__main__.py")


def use_utf8() -> None:
    """Start Python again in its UTF-8 mode where the locale is another one, such as plain C, and the words are UTF-8.

    In plain C no file whose name is outside ASCII could be opened, and no text outside it be read from a word. Only
    this program is started again: code of others that calls it may have done something before.
    """
    if sys.getfilesystemencoding().lower() in ("utf-8", "utf8") or not sys.argv[0].endswith(_OWN_SCRIPTS):
        return
    with suppress(UnicodeDecodeError, OSError):
        for word in sys.argv[1:]:
            os.fsencode(word).decode("utf-8")
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])  # noqa: S606 - no shell


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
