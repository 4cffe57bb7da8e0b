"""Evaluation sets, a class for each kind of files: annotated shards, class folders, relation files."""
