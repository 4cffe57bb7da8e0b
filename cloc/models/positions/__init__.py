"""Encodings of positions: what tells a token or a box where it is."""
