"""`python -m shadowft_core.cli` is `shadowft`."""

from shadowft_core.cli import main

main()
