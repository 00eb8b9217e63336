"""Answer HTTP requests with a pipeline, or with several."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from threading import Thread
from typing import TYPE_CHECKING

from pipeline_kit.cli.selection import OVERRIDES, Selection, add_selection_flags
from pipeline_kit.cli.stdio import no_collection, prepare_stdout, print_out, say
from pipeline_kit.errors import UsageError, for_message
from pipeline_kit.files.json_text import json_line

if TYPE_CHECKING:
    from pipeline_kit.compose.schema import PipelineConfig
    from pipeline_kit.contract.registry import Registry
    from pipeline_kit.runtime.pipeline import Pipeline

TAKES_WORDS = OVERRIDES
MOST_PIPELINES = 32

EPILOG = """\
examples:
  pipeline-kit serve
  pipeline-kit serve task=sentence-embedding checkpoint=minilm serve.port=9000
  pipeline-kit serve --pipeline sentiment=sentiment.yaml --pipeline ner=ner.yaml serve.log=json
  curl localhost:8000/run -d '{"inputs": ["I love this.", "I hate it."]}'

One line of JSON with the URL is printed when it can answer; docs/serving.md has the routes of each client.
SIGTERM and ctrl-c finish what was accepted first.

exit codes: 0 all that was accepted was answered, 1 something was cut off, 2 wrong usage or config, or a port in use
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``serve``."""
    parser.usage = "pipeline-kit serve [--config FILE] [--pipeline NAME=FILE]... [OVERRIDE ...]"
    group = parser.add_argument_group("pipelines")
    group.add_argument(
        "--pipeline",
        metavar="NAME=FILE",
        action="append",
        default=[],
        help="a pipeline under /pipelines/NAME/, from a YAML file as --config takes it; the first answers at / too",
    )
    add_selection_flags(parser)


def execute(args: argparse.Namespace) -> int:
    """Serve until a signal comes; 1 if accepted work was cut off."""
    from pipeline_kit.serve.server import listen, serve

    selection = Selection.of(args)
    if selection.multirun:
        raise UsageError("-m makes several configs; serve several pipelines with --pipeline NAME=FILE")
    registry = selection.registry()
    configs = _configs(args, selection, registry)
    config = next(iter(configs.values())).serve
    with listen(config) as port:
        _share_threads(configs)
        pipelines = {}
        with no_collection():
            for name, own in configs.items():
                pipelines[name] = _load(own, selection.plugins)
                for note in pipelines[name].description["notes"]:
                    say(f"note: {name}: {note}")
        prepare_stdout()
        return serve(pipelines, config, port, lambda url: print_out(json_line({"url": url}), flush=True), say)


def _load(config: PipelineConfig, plugins: Sequence[str]) -> Pipeline:
    """Load a pipeline on a thread that ends.

    OpenMP keeps a pool for each thread that has computed. With one for this thread beside that of the model's, there
    are more threads than processors, and libgomp lets them sleep between two layers: 3 ms more for a short text.
    """
    from pipeline_kit.compose.build import build

    loaded: Future[Pipeline] = Future()

    def load() -> None:
        try:
            loaded.set_result(build(config, plugins=plugins))
        except BaseException as error:
            loaded.set_exception(error)

    thread = Thread(target=load, name="pipeline-kit-load", daemon=True)  # so that ctrl-c need not wait for it
    thread.start()
    pipeline = loaded.result()
    thread.join()
    return pipeline


def _configs(args: argparse.Namespace, selection: Selection, registry: Registry) -> dict[str, PipelineConfig]:
    """Compose the pipelines, by name.

    :raises UsageError: for an override that is not of the server, where each pipeline has a file.
    """
    if not args.pipeline:
        [(_, config)] = selection.compositions(registry)
        return {"default": config}
    if args.config is not None or args.config_name is not None:
        raise UsageError("--config is for one pipeline; with --pipeline NAME=FILE each has a file")
    found: dict[str, PipelineConfig] = {}
    for word in selection.overrides:
        if not word.startswith("serve"):
            hint = "set it in the pipeline's file"
            raise UsageError(f"'{for_message(word, 80)}': with --pipeline only serve.* is set for all of them; {hint}")
    for pair in args.pipeline:
        name, _, file = pair.partition("=")
        if not file or not name.replace("-", "_").isidentifier() or not name.isascii():
            raise UsageError(f"--pipeline {for_message(pair, 80)}: write NAME=FILE, a name of letters, digits, - and _")
        if name in found:
            raise UsageError(f"--pipeline {name}: this name is there twice")
        args.config = file
        [(_, found[name])] = Selection.of(args).compositions(registry)
    if len(found) > MOST_PIPELINES:
        raise UsageError(f"{len(found)} pipelines are more than {MOST_PIPELINES}")
    return found


def _share_threads(configs: dict[str, PipelineConfig]) -> None:
    """Divide the processors among pipelines that leave it open, and say so."""
    from pipeline_kit.runtime.device import available_cpus

    if len(configs) == 1:
        return
    share = max(1, available_cpus() // len(configs))
    for name, config in configs.items():
        threads = config.device.threads or share
        configs[name] = config.mapped(
            lambda _, part: replace(part, device=replace(part.device, threads=part.device.threads or share))
        )
        say(f"{name}: device={config.device.name}, {threads} of {available_cpus()} processors")
