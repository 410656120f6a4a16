"""The delta store against the field's usual ways to put a file into S3 and back; `python -m benchmarks.store`."""
