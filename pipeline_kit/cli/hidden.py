"""What the overrides of a sweep are called in headings and reports: as they were given, without secrets."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["without_secrets"]


def without_secrets(words: Iterable[str]) -> list[str]:
    """Give overrides in which a value is hidden if its option's name or its own form says that it is a secret."""
    from pipeline_kit.job.identity import redacted

    return [f"{key}{equals}{redacted(value, key.lstrip('+~'))}" for key, equals, value in map(_parted, words)]


def _parted(word: str) -> tuple[str, str, str]:
    return word.partition("=")
