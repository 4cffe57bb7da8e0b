"""Data sets of others → shards: one file a format, records, resumable jobs."""
