"""Evaluation sets: annotated pictures, class folders, relations, class names."""
