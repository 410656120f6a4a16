"""Extract and graft compared with other tools: `python -m benchmarks.graft`."""
