"""Measurements that the docs quote, each `python -m benchmarks.NAME`."""
