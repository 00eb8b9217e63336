"""The flags that choose a config, the same for every subcommand that composes one."""

from __future__ import annotations

import argparse
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from pipeline_kit.cli.app import RARE
from pipeline_kit.cli.stdio import is_terminal, prepare_stdout, print_out, stdout
from pipeline_kit.errors import UsageError, did_you_mean, for_message, without_secrets
from pipeline_kit.files.atomic import atomic_writer
from pipeline_kit.files.json_text import json_line

if TYPE_CHECKING:
    from pipeline_kit.compose.schema import PipelineConfig
    from pipeline_kit.contract.registry import Registry

OVERRIDES = "override"

_UNSUPPORTED = {
    "--info": "use: pipeline-kit ls, pipeline-kit cfg",
    "--shell-completion": "use: pipeline-kit completion bash",
    "-sc": "use: pipeline-kit completion bash",
    "--config-path": "use --config-dir DIR, or --config FILE",
    "-cp": "use --config-dir DIR, or --config FILE",
    "--hydra-help": "use --help",
    "--experimental-rerun": "use --config FILE",
}


class _OneConfig(argparse.Action):
    """Refuse a second value, which argparse puts in the place of the first without a word."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, flag: str | None = None) -> None:
        before = getattr(namespace, self.dest)
        if before is not None:
            both = " and ".join(for_message(value, 80) for value in (before, values))
            raise UsageError(f"{flag} {both}: one config is the start; name the other in its defaults")
        setattr(namespace, self.dest, values)


def add_selection_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--config-dir``, ``--config-name``, ``--config``, ``--plugin``, ``-m`` and Hydra's other flags."""
    group = parser.add_argument_group(
        "config", "OVERRIDE is key=value, such as padding=longest or tokenizer.max_length=64"
    )
    group.add_argument("--config", metavar="FILE", action=_OneConfig, help="start from this YAML file")
    group.add_argument("--multirun", "-m", action="store_true", help="run every combination of a=1,2 b=x,y")
    group.add_argument("--help-config", action="help", help="show the flags for folders, plugins and the config itself")
    group = parser.add_argument_group(
        RARE, "pipeline-kit ls lists what OVERRIDE may choose, show KIND/NAME its options"
    )
    group.add_argument("--config-name", "-cn", metavar="NAME", help="start from NAME.yaml of a --config-dir")
    add_source_flags(group)
    group.add_argument(
        "--cfg", "-c", metavar="job", choices=["job"], help="print the composed config and do nothing else"
    )
    group.add_argument("--package", "-p", metavar="KEY", help="with --cfg: only the part under KEY")
    group.add_argument("--resolve", action="store_true", help="with --cfg: say what 'auto' and null became")
    for flag in _UNSUPPORTED:
        # Without a value argparse passes the const to the type, too.
        refuse = partial(_refuse, flag)
        group.add_argument(flag, dest="unsupported", type=refuse, nargs="?", const="", help=argparse.SUPPRESS)


def add_source_flags(parser: argparse._ActionsContainer) -> None:
    """Add the flags that bring in presets and plugins."""
    parser.add_argument(
        "--config-dir", "-cd", metavar="DIR", action="append", default=[], help="look for presets here too; repeatable"
    )
    parser.add_argument(
        "--plugin",
        metavar="FILE|MODULE",
        action="append",
        default=[],
        help="load a plugin that is not installed; repeatable",
    )


def _refuse(flag: str, value: str) -> NoReturn:
    raise UsageError(f"Hydra's {flag} does not work here; {_UNSUPPORTED[flag]}")


@dataclass(frozen=True)
class Selection:
    """Which config, as the user's flags say it.

    :param flags: the overrides that flags such as ``--fields`` stand for. They come last, and no heading repeats them.
    """

    overrides: tuple[str, ...]
    config_dirs: tuple[str, ...]
    config_name: str
    plugins: tuple[str, ...]
    multirun: bool
    flags: tuple[str, ...] = ()

    @classmethod
    def of(cls, args: argparse.Namespace) -> Selection:
        """Read parsed flags.

        :raises UsageError: for a word that is not an override, and for flags that contradict each other.
        """
        folders, name = list(args.config_dir), args.config_name and args.config_name.removesuffix(".yaml")
        if args.config is not None:
            if name is not None:
                raise UsageError("--config and --config-name both name the config to start from; pass one")
            from pipeline_kit.compose.compose import config_file

            path = config_file(args.config)
            folders, name = [str(path.parent), *folders], path.stem
        for before, word, after in zip(["", *args.words], args.words, [*args.words[1:], ""], strict=False):
            if "=" not in word and not word.startswith("~"):
                apart = before.endswith("=") or after.startswith("=")
                if apart:
                    raise UsageError(
                        f"'{for_message(word, 80)}' stands apart from its =; write KEY=VALUE without spaces"
                    )
                raise _stray(word)
        words, plugins = tuple(args.words), tuple(args.plugin)
        return cls(words, tuple(folders), name or "config", plugins, args.multirun, tuple(_flag_overrides(args)))

    @property
    def files(self) -> list[Path]:
        """The files among what the flags name: the config to start from, and plugins."""
        configs = [Path(folder).expanduser() / f"{self.config_name}.yaml" for folder in self.config_dirs]
        return [path for path in (*configs, *map(Path, self.plugins)) if path.is_file()]

    def registry(self) -> Registry:
        """Load the built-in stages and the plugins the user named."""
        from pipeline_kit.compose.plugins import load_registry

        return load_registry(self.plugins)

    def compositions(self, registry: Registry) -> list[tuple[list[str], PipelineConfig]]:
        """Compose the config, or with ``-m`` all of them, each with the overrides that made it.

        From here on this process is as patient with stores as the last of them says.

        :raises ConfigError: before anything runs, if any of them has a fault.
        """
        from pipeline_kit.compose import compose
        from pipeline_kit.files.storage.retries import use_storage

        jobs = [list(self.overrides)]
        if self.multirun:
            jobs = compose.sweep(self.overrides, registry=registry, config_dir=self.config_dirs)
        start = {"registry": registry, "config_dir": self.config_dirs, "config_name": self.config_name}
        found = [(job, compose.compose([*job, *self.flags], **start)) for job in jobs]  # type: ignore[arg-type]
        use_storage(found[-1][1].storage)
        return found


def _flag_overrides(args: argparse.Namespace) -> Iterator[str]:
    """Write ``--fields``, ``--label``, ``--input-format`` and the ``--format`` of a file as overrides.

    :raises UsageError: if ``--fields`` is not FIELD=COLUMN, or names another label than ``--label``.
    """
    fields: dict[str, str] = {}
    for pair in chain.from_iterable(item.split(",") for item in getattr(args, "fields", ())):
        name, _, column = pair.partition("=")
        if not column or not name.isidentifier():
            raise UsageError(f"--fields {for_message(pair, 80)}: write FIELD=COLUMN, such as text=review_body")
        fields[name] = column
    label = getattr(args, "label", None)
    if label is not None and fields.setdefault("label", label) != label:
        other = for_message(fields["label"], 40)
        raise UsageError(f"--label {for_message(label, 40)} and --fields label={other}: pass one")
    if fields:
        from pipeline_kit.compose.hydra import written

        yield from (f"input.fields.{name}={written(column)}" for name, column in fields.items())
    if getattr(args, "input_format", None) is not None:
        yield f"input.format={args.input_format}"
    if getattr(args, "output_format", None) not in (None, "table"):
        yield f"output.format={args.output_format}"


def subtree(data: Any, key: str | None) -> Any:
    """Return the part of a config under a dotted `key`.

    :raises UsageError: if there is none; names the closest.
    """
    for part in (key or "").split(".") if key not in (None, "", "_global_") else ():
        if not hasattr(data, "keys") or part not in data:
            known = list(data) if hasattr(data, "keys") else []
            hint = did_you_mean(part, known) or f" There are: {', '.join(known) or 'none'}"
            raise UsageError(f"--package {for_message(key, 80)}: the config has no '{for_message(part, 80)}'.{hint}")
        data = data[part]
    return data


def _stray(word: str) -> UsageError:
    shown = for_message(word, 80)
    if not word.strip():
        return UsageError(
            "an empty word is neither a flag nor an override (key=value); is a variable of the shell empty?"
        )
    if re.fullmatch(r"[\w.]+:", word):
        return UsageError(f"{shown} is how a YAML file has it; write {shown[:-1]}=VALUE without spaces")
    text = f"'{shown}' is neither a flag nor an override (key=value)."
    if word.endswith((".yaml", ".yml")):
        return UsageError(f"{text} Did you forget --config {shown}?")
    if word.endswith((".txt", ".csv", ".tsv", ".jsonl")):
        return UsageError(f"{text} Did you forget --input {shown}?")
    from pipeline_kit.compose import aliases, overrides, plugins  # here, since they take a while

    meant = aliases.alone(word, overrides.options(plugins.load_registry()))
    return UsageError(f"{text} Did you mean {meant}?" if meant else f'{text} Did you forget --text "{shown}"?')


@dataclass(frozen=True)
class NamedConfig:
    """A config among several that are compared, under a name for people."""

    name: str
    config: PipelineConfig


def versus_words(text: str, otherwise: str) -> list[str]:
    """Split a value of ``--vs`` into overrides.

    :param otherwise: what else a value may be, for the message.
    :raises UsageError: for a word that is not an override.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f'--vs "{for_message(text, 80)}": {error}; write overrides as behind a command') from error
    for word in words:
        if "=" not in word and not word.startswith("~"):
            raise UsageError(f"--vs {for_message(word, 80)}: write overrides (key=value), {otherwise}")
    return words


def compared(selection: Selection, others: Sequence[Sequence[str]]) -> list[NamedConfig]:
    """Compose what is compared before any is built: the config as given (with ``-m`` all of them), then `others`.

    :param others: overrides that are put behind those of the first.
    :raises UsageError: if they take other fields.
    :raises ConfigError: if one cannot be composed.
    """
    registry, found = selection.registry(), []
    for job, config in selection.compositions(registry):
        name = (" ".join(without_secrets(job)) or "no overrides") if selection.multirun else "as given"
        found.append(NamedConfig(name, config))
    for words in others:
        [(_, config)] = replace(selection, overrides=(*selection.overrides, *words)).compositions(registry)
        name, first = " ".join(without_secrets(words)) or "the same again", found[0].config.task.takes
        if config.task.takes != first:
            raise UsageError(
                f"'{for_message(name, 80)}' takes {', '.join(config.task.takes)}, the first pipeline "
                f"{', '.join(first)}: both have to take the same texts"
            )
        found.append(NamedConfig(name, config))
    counts: Counter[str] = Counter()
    for place, side in enumerate(found):
        counts[side.name] += 1
        if counts[side.name] > 1:
            found[place] = replace(side, name=f"{side.name} ({counts[side.name]})")
    return found


Show = Callable[[dict[str, Any]], object]


def as_table(format: str | None) -> bool:
    """Return whether ``--format`` asks for tables; by default a terminal does."""
    return format == "table" or (format is None and is_terminal(stdout()))


@contextmanager
def report_writer(output: Path | None, format: str | None, tables: Show) -> Iterator[Show]:
    """Return what takes the report; a file that cannot be written is an error before anything is measured."""
    if output is not None:
        with atomic_writer(output) as file:
            yield lambda report: file.write(json_line(report) + "\n")
    elif as_table(format):
        yield tables
    else:
        prepare_stdout()
        yield lambda report: print_out(json_line(report))
