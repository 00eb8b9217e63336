"""How a user asked for a job, kept in its manifest so that ``pipeline-kit retry`` need not be told again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline_kit.errors import UsageError, shorten
from pipeline_kit.redaction import HIDDEN, without_secrets

__all__ = ["Command"]


@dataclass(frozen=True)
class Command:
    """What composes a job's config and names its input; see the flags of ``pipeline-kit run``.

    :param folder: the working folder, which relative paths start from.
    :param files: the input's files; empty if the texts were given otherwise.
    """

    overrides: Sequence[str] = ()
    config_dirs: Sequence[str] = ()
    config_name: str = "config"
    plugins: Sequence[str] = ()
    files: Sequence[str] = ()
    input_format: str | None = None
    fields: Mapping[str, str] = field(default_factory=dict)
    format: str | None = None
    folder: str = ""

    def kept(self) -> dict[str, Any]:
        """Give it as plain data without secrets, for a manifest."""
        return asdict(self) | {"overrides": without_secrets(self.overrides)}

    @classmethod
    def read(cls, data: Mapping[str, Any], given: Sequence[str]) -> Command:
        """Read what :meth:`kept` gave, with the overrides that are `given` now behind the ones of then.

        :raises UsageError: if nothing was kept, or a secret was left out of it that is not among those given.
        """
        if not data:
            raise UsageError("the job does not say how it was asked for; it was not made by: pipeline-kit run")
        command = cls(**data)
        keys = {word.partition("=")[0] for word in given}
        overrides = [word for word in command.overrides if HIDDEN not in word or word.partition("=")[0] not in keys]
        hidden = next((word for word in overrides if HIDDEN in word), None)
        if hidden is not None:
            raise UsageError(f"'{shorten(hidden, 80)}' was not kept, since it is a secret; give it again")
        return cls(**{**asdict(command), "overrides": [*overrides, *given]})

    def elsewhere(self) -> str | None:
        """Say so if the working folder is another one now, where relative paths may lead nowhere."""
        if not self.folder or Path(self.folder) == Path.cwd():
            return None
        return (
            f"the job was run in {self.folder}; what its command names relative to that folder is found from there only"
        )
