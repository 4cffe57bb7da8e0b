"""Shard → Sample → Batch."""
