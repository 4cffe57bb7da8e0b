"""Sweeps: the number a job returns, its folder, and the report over all jobs."""
