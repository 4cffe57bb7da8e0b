"""Metrics: how each is measured, from answers to intervals."""
