"""Metrics as people read them: the terminal's table and the page. ``meaning`` names metrics, ``page`` writes."""
