"""Damaged and hostile files for every reader: `make test-fuzz`, and a small share in `make test`."""
