"""What a command writes must not be what it reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline_kit.atomic import refuse_overlap
from pipeline_kit.cli.selection import Selection

if TYPE_CHECKING:
    from pipeline_kit.pipeline_config import PipelineConfig

__all__ = ["check_outputs"]

_STDOUT = Path("/dev/stdout")
_CHECKPOINT_SUFFIXES = (".jinja", ".json", ".model", ".safetensors", ".spm", ".txt")


def check_outputs(
    outputs: Iterable[tuple[str, Path | None]],
    files: Sequence[str],
    selection: Selection,
    configs: Iterable[PipelineConfig],
) -> None:
    """See, before a model is loaded, that no output, nor the file behind stdout, is a file that is read.

    Those are the input, configs, plugins and what a checkpoint is made of.

    :param outputs: what will be written, each behind its flag; None where nothing is.
    :param files: the input as it was named.
    :raises UsageError: naming both.
    :raises CheckpointError: if a checkpoint is not there.
    """
    written = [(flag, path) for flag, path in outputs if path is not None]
    if not written and _STDOUT.is_file():  # as it is behind >> of a shell
        written = [("stdout", _STDOUT)]
    if written:
        checkpoints = dict.fromkeys(config.checkpoint.path for config in configs)
        refuse_overlap(written, [*files, *selection.files, *(file for path in checkpoints for file in _files(path))])


def _files(checkpoint: str) -> list[Path]:
    from pipeline_kit.checkpoint_locate import find_folder
    from pipeline_kit.checkpoint_scan import files_of

    folder = find_folder(checkpoint)
    return [] if folder is None else [path for path in files_of(folder) if path.suffix.lower() in _CHECKPOINT_SUFFIXES]
