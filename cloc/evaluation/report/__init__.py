"""Metrics as people read them, by what they say of themselves: the terminal's ``table``, and the ``page``."""
