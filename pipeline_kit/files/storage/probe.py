"""Whether a store keeps what jobs build on: that nothing is written over but by who knows its version."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from pipeline_kit.errors import OutputError
from pipeline_kit.files.storage.base import Conflict, Storage, join_key


def probe_create(storage: Storage, folder: str) -> float:
    """Create an object in `folder` twice, with other bytes, and remove it.

    :returns: how far the clock of the storage is ahead of this machine's, in seconds; to a second or so.
    :raises OutputError: if the second is not refused, or nothing can be written.
    """
    with _object_in(storage, folder) as key:
        before = time.time()
        storage.create(key, b"first")
        now = (before + time.time()) / 2
        with suppress(Conflict):
            storage.create(key, b"second")
        if storage.read(key) != b"first":
            raise OutputError(
                f"{folder}: this store writes over an object that it was asked to write only if there is none "
                "(If-None-Match), so two writers of a job could harm each other; use a store that honours it, or write "
                "to a folder of this machine and copy that"
            )
        return storage.status(key).modified - now


def probe_swap(storage: Storage, folder: str) -> None:
    """Replace an object in `folder` by its version, and then by the old one.

    :raises OutputError: if the second is not refused, or nothing can be written.
    """
    with _object_in(storage, folder) as key:
        version = storage.swap(key, b"first", None)
        storage.swap(key, b"second", version)
        with suppress(Conflict):
            storage.swap(key, b"third", version)
        if storage.read(key) != b"second":
            raise OutputError(
                f"{folder}: this store replaces another version of an object than it was asked to (If-Match), so two "
                "drivers of a job would not notice each other; use a store that honours it"
            )


@contextmanager
def _object_in(storage: Storage, folder: str) -> Iterator[str]:
    """Return a key where nothing is, and remove what is there at the end."""
    key = join_key(folder, f".probe-{secrets.token_hex(8)}")
    try:
        yield key
    except OSError as error:
        raise OutputError(f"{key}: was written, but cannot be read: {error.strerror or error}") from error
    finally:
        with suppress(OutputError):  # credentials that may write and not delete will do
            storage.delete(key)
