"""``data check``, ``show``, ``bench``: what a folder of shards holds."""
