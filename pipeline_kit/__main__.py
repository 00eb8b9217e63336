"""Runs the command line with ``python -m pipeline_kit``."""

from __future__ import annotations

import sys

from pipeline_kit.cli.app import main

sys.exit(main())
