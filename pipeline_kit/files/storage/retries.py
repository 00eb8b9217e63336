"""Requests to a store that fails now and then: which are sent again, how often, and what the error says."""

from __future__ import annotations

import errno
import random
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from pipeline_kit.contract.options import option
from pipeline_kit.errors import PipelineKitError, for_message, learn_environment

FIRST_DELAY, LONGEST_DELAY = 0.1, 20.0
"""Seconds waited before a request is sent again, at most: after the first failure, and after any."""

T = TypeVar("T")


@dataclass
class StorageConfig:
    """Options of the group ``storage``. None of them changes a result, so a job may be resumed with others."""

    retries: int = option(
        10, "how often to send a request to a store again after a transient error", minimum=0, maximum=1000
    )
    retry_seconds: float = option(
        120.0, "seconds after which a request that failed is sent no more", minimum=0, maximum=86_400
    )


_patience = StorageConfig()
_given_up: set[str] = set()
"""Buckets that answered nothing for as long as was allowed: until they do, each further request is sent once."""


def use_storage(config: StorageConfig) -> None:
    """Set how patient this process is with stores."""
    global _patience
    _patience = config


def patience() -> StorageConfig:
    """Return how patient this process is with stores."""
    return _patience


class Unsettled(Exception):
    """A request was refused for a reason that is not there, so it is sent again."""


def retried(key: str, doing: str, send: Callable[[], T], credentials: str) -> T:
    """Send a request until it is answered, with exponential backoff and full jitter.

    :param doing: what the request is for, as "reading".
    :param send: sends it once; its own errors of this package are passed on.
    :param credentials: the variables to look at if it is denied.
    :raises FileNotFoundError: if there is no such object or bucket; at once.
    :raises PermissionError: if it is denied; at once.
    :raises OSError: if it is refused for good, or failed too often: it names both counts and the last error.
    """
    started, tries = time.monotonic(), 0
    bucket = "/".join(key.split("/", 3)[:3])
    while True:
        tries += 1
        try:
            answer = send()
            _given_up.discard(bucket)
            return answer
        except PipelineKitError:
            _given_up.discard(bucket)
            raise
        except Exception as error:
            _raise_if_final(error, key, doing, credentials, tries)
            waits = random.uniform(0, min(LONGEST_DELAY, FIRST_DELAY * 2**tries))  # noqa: S311 - no secret
            passed = time.monotonic() - started
            allowed = 0 if bucket in _given_up else _patience.retries
            if tries > allowed or passed + waits > _patience.retry_seconds:
                _given_up.add(bucket)
                often = f"{tries} times in {passed:.0f} s" if tries > 1 else "once"
                hint = "; storage.retries and storage.retry_seconds allow more"
                raise OSError(errno.EIO, f"{doing} failed {often}, at last: {reason_of(error)}{hint}", key) from error
        time.sleep(waits)


_STATUS = re.compile(r"status code: (\d{3})")
_PASSING = {408, 409, 425, 429, 500, 502, 503, 504}
_FINAL = (ValueError, TypeError, NotImplementedError, ImportError, IsADirectoryError, NotADirectoryError)
_IDENTITY = re.compile(r"169\.254\.\d+\.\d+|metadata\.google|fd00:ec2|token request")
_IDENTITY_TRIES = 3
"""A machine's own identity is asked for where no variables are set; most often there is none."""


def _raise_if_final(error: Exception, key: str, doing: str, credentials: str, tries: int) -> None:
    """Raise what it makes no sense to try again.

    The store's library has one class for most errors, so that the status in its text decides.
    """
    text, status = str(error), _status(error)
    if _IDENTITY.search(text):
        if tries < _IDENTITY_TRIES:
            return
        reason = f"no credentials were found ({reason_of(error)}): set {credentials}"
        raise PermissionError(errno.EACCES, reason, key) from error
    if isinstance(error, FileNotFoundError) or status == 404:
        reason = "there is no such bucket" if "NoSuchBucket" in text else "No such object"
        raise FileNotFoundError(errno.ENOENT, reason, key) from error
    if isinstance(error, PermissionError) or status in (401, 403) or "AccessDenied" in text:
        reason = f"access denied ({reason_of(error)}): are {credentials} right, and may they do this?"
        raise PermissionError(errno.EACCES, reason, key) from error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        reason = f"no room for a copy in {tempfile.gettempdir()}; set TMPDIR to a folder with room"
        raise OSError(error.errno, reason, key) from error
    if isinstance(error, Unsettled) or status in _PASSING or "RequestTimeout" in text:
        return
    hint = ""
    if "redirect" in text:
        hint = "; is the region right (AWS_REGION)?"
    elif "builder error" in text:
        hint = "; an http:// endpoint needs AWS_ALLOW_HTTP=true"
    elif status is None and not isinstance(error, _FINAL) and "Offline" not in type(error).__name__:
        return
    raise OSError(errno.EINVAL, f"{doing} was refused: {reason_of(error)}{hint}", key) from error


def _status(error: Exception) -> int | None:
    """Return the status of an answer, as the store's library or another one says it."""
    if found := _STATUS.search(str(error)):
        return int(found[1])
    said = getattr(error, "status", getattr(getattr(error, "response", None), "status_code", None))
    return said if isinstance(said, int) else None


_CAUSES = (
    ("TimedOut", "no answer in time"),
    ("ConnectionRefused", "the connection was refused"),
    ("dns error", "the host's name is not known"),
    ("IncompleteMessage", "the connection was cut"),
    ("ConnectionReset", "the connection was cut"),
    ("UnexpectedEof", "the answer was cut off"),
)
_BODY = re.compile(r"<Code>([^<]*)</Code>(?:\s*<Message>([^<]*)</Message>)?")


def reason_of(error: BaseException) -> str:
    """Return why a request failed, in a few words and without what variables hold."""
    text = str(error)
    body, status = _BODY.search(text), re.search(r"status code: (\d{3}[ \w]*)", text)
    cause = next((words for mark, words in _CAUSES if mark in text), None)
    if status is not None:
        reason = status[1] + (f", {body[1]}" + (f": {body[2]}" if body[2] else "") if body else "")
    else:
        reason = cause or text.partition("\n")[0].rpartition(" - ")[2]
    learn_environment()
    return for_message(reason, 300)
