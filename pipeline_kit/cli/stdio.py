"""stdout and stderr as the command line uses them."""

from __future__ import annotations

import errno
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from pipeline_kit.errors import OutputError, for_message

_results: TextIO | None = None


def stdout() -> TextIO:
    """Return the stream of results; ``sys.stdout`` is for what stages and plugins print."""
    return sys.stdout if _results is None else _results


@contextmanager
def results_apart() -> Iterator[None]:
    """Send to stderr what stages, plugins and native code write to stdout, which belongs to the results."""
    global _results
    before, kept = (_results, sys.stdout), None
    if sys.stdout is None:
        yield
        return
    try:
        if sys.stdout.fileno() == 1:
            sys.stdout.flush()
            kept = os.dup(1)
            os.dup2(2, 1)
    except (OSError, ValueError):  # a stream that a program put there, or no stderr
        pass
    if kept is None:
        _results, sys.stdout = sys.stdout, sys.stderr
    else:
        _results = open(kept, "w", encoding=before[1].encoding, errors=before[1].errors, closefd=False)  # noqa: SIM115
        # Of its own, so that a plugin which closes it leaves stderr to the messages.
        sys.stdout = open(os.dup(1), "w", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: SIM115
    try:
        yield
    finally:
        if kept is not None:
            for stream in (sys.stdout, _results):
                with suppress(OSError, ValueError):
                    stream.close()
            os.dup2(kept, 1)
            os.close(kept)
        _results, sys.stdout = before


def hold_closed() -> None:
    """Put ``/dev/null`` where stdin, stdout or stderr is closed, so that no file that is opened later gets its number.

    What would be results is still an error: nothing can be written to that stdout. ``sys.stdin`` stays None.
    """
    if sys.stdin is None:
        os.open(os.devnull, os.O_WRONLY)  # each takes the lowest number that is free
    if sys.stdout is None:
        sys.stdout = open(os.open(os.devnull, os.O_RDONLY), "w", encoding="utf-8")  # noqa: SIM115 - as long as we run
    if sys.stderr is None:
        sys.stderr = open(os.open(os.devnull, os.O_WRONLY), "w", encoding="utf-8")  # noqa: SIM115


def say(text: str) -> None:
    """Print a line for the user's eyes to stderr, control characters escaped."""
    lines = [for_message(line, 4000) for line in text.split("\n")]
    with suppress(OSError):  # without a stderr there is nobody left to tell
        sys.stderr.write("\n".join(lines) + "\n")
        sys.stderr.flush()


def print_out(text: str, *, flush: bool = False) -> None:
    """Print to stdout, which carries nothing but what was asked for.

    :raises BrokenPipeError: if the reader has gone.
    :raises OutputError: if it cannot be written for another reason.
    """
    write_out(text if text.endswith("\n") else text + "\n")
    if flush:
        flush_out()


def write_out(text: str) -> None:
    """Write to stdout, no line end added; raises as :func:`print_out` does."""
    try:
        try:
            stdout().write(text)
        except UnicodeEncodeError:  # a file's name that is not UTF-8
            stdout().write(text.encode("utf-8", "backslashreplace").decode("utf-8"))
    except OSError as error:
        raise _broken(error) from error


def flush_out() -> None:
    """Hand over what stdout still holds; raises as :func:`print_out` does."""
    try:
        stdout().flush()
    except OSError as error:
        raise _broken(error) from error


def _broken(error: OSError) -> OSError | OutputError:
    if isinstance(error, BrokenPipeError):
        return error
    discard_stdout()
    hint = "; it is closed; where there is the flag, --output writes a file" if error.errno == errno.EBADF else ""
    return OutputError(f"stdout: cannot be written: {error.strerror or error}{hint}")


def prepare_stdout() -> None:
    """Write UTF-8 with plain newlines whatever the locale, since the output is data."""
    reconfigure = getattr(stdout(), "reconfigure", None)
    if reconfigure is not None:
        reconfigure(encoding="utf-8", errors="strict", newline="\n")


def is_terminal(stream: TextIO) -> bool:
    """Return whether a person sees `stream`."""
    try:
        return stream.isatty()
    except ValueError:
        return False


def discard_stdout() -> None:
    """Send what stdout still holds nowhere, so that Python's last flush does not complain of a closed pipe."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stdout().fileno())
    except (OSError, ValueError):
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - lives until the process ends


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
    again took a tenth of the time of a cold start; afterwards they are frozen.
    """
    running = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if running:
            gc.freeze()
            gc.enable()
