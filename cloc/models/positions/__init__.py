"""Encodings of positions: what tells a token or a box where it is. One file an encoding, named in ``encodings``."""
