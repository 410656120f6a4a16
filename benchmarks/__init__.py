"""Measurements of whole processes on real files. Read README.md."""
