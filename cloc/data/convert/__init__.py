"""Converts data sets of others to shards: a file for each format, records, limits."""
