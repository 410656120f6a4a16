"""Tests and their programs. The libraries read these variables when they are imported, so they are set here."""

from shadowft_core.environment import set_variables

set_variables()
