"""Weights: reading, digests, layouts of other libraries, fitting."""
