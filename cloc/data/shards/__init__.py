"""Shards: tars with a manifest and an offset index, on disk or behind URLs; below ``stream``."""
