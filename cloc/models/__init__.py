"""Batch → Features: towers, Prompter, grounding. Never a loss."""
