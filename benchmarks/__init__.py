"""Every measured number of the README: `python -m benchmarks` measures, writes JSON, and remakes the tables."""
