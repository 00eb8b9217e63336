"""Check this installation: versions, processor, devices, plugins, config, cache, and one sentence end to end."""

from __future__ import annotations

import argparse

from pipeline_kit.cli import doctor_config, doctor_machine
from pipeline_kit.cli.doctor_finding import Finding
from pipeline_kit.cli.selection import add_source_flags
from pipeline_kit.cli.streams import prepare_stdout, print_out
from pipeline_kit.discovery import load_registry
from pipeline_kit.errors import shorten
from pipeline_kit.redaction import hidden
from pipeline_kit.sinks import json_line

__all__ = ["configure", "execute"]


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the flags of ``doctor``."""
    parser.add_argument("--json", action="store_true", help="as JSON")
    add_source_flags(parser)


def execute(args: argparse.Namespace) -> int:
    """Print the findings; 1 if one of them is a fault."""
    registry = load_registry(args.plugin, everything=True)
    findings: list[Finding] = [
        *doctor_machine.versions(),
        *doctor_machine.processor(),
        *doctor_machine.devices(),
        *doctor_config.plugins(registry),
        *doctor_config.doubled(registry, args.config_dir),
        *doctor_machine.hub_cache(),
        *doctor_config.answers(registry),
    ]
    prepare_stdout()
    for finding in findings:
        print_out(
            json_line(vars(finding) | {"text": hidden(finding.text)}) if args.json else shorten(_line(finding), 1000)
        )
    return 1 if any(finding.level == "fail" for finding in findings) else 0


def _line(finding: Finding) -> str:
    return f"{finding.level:<4}  {finding.topic:<14}  {finding.text}"
