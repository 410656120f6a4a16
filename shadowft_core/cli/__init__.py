"""The command line."""

from shadowft_core.cli.app import app, main

__all__ = ["app", "main"]
