"""Metrics, a class each: when it applies, how it is measured, what it says of itself; and their intervals."""
