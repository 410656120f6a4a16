"""The weight engine against its peers: `python -m benchmarks.graft`."""
