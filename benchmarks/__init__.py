"""Measurements of whole processes on real files. Read README.md."""

from shadowft_core.environment import set_variables

set_variables()
