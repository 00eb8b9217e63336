"""Make a call again where its error may pass."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import TypeVar, final

from pipeline_kit.isolate import InStage
from pipeline_kit.runner_config import RunnerConfig

__all__ = ["Retry"]

R = TypeVar("R")
LONGEST = 60.0


@final
class Retry:
    """Makes calls, some of them again.

    The waits are those of exponential backoff with full jitter: a random time up to ``delay * 2 ** n``, and 60
    seconds at the most, so that processes that failed together do not come back together.
    """

    def __init__(
        self,
        options: RunnerConfig,
        sleep: Callable[[float], object] = time.sleep,
        fraction: Callable[[], float] = random.random,
    ) -> None:
        """Follow `options`; `fraction` gives a number from 0 to 1."""
        self._options, self._sleep, self._fraction = options, sleep, fraction

    def __call__(self, call: Callable[[], R], again: Callable[[BaseException], None]) -> R:
        """Give what `call` gives.

        :param again: told of each error after which the call is made again.
        """
        for tried in range(self._options.retries):
            try:
                return call()
            except Exception as error:
                if not self.may_pass(error):
                    raise
                again(error)
                self._sleep(self._fraction() * min(LONGEST, self._options.retry_delay * 2**tried))
        return call()

    def may_pass(self, error: BaseException) -> bool:
        """Tell whether `error` is of a class that is listed, by its bare name or with its module."""
        if isinstance(error, InStage):
            error = error.cause
        names = {name for kind in type(error).__mro__ for name in (kind.__name__, f"{kind.__module__}.{kind.__name__}")}
        return not names.isdisjoint(self._options.retry_errors)
