"""The command line."""

from shadowft_core.cli.stages import app, main

__all__ = ["app", "main"]
