"""What frozen towers have made of a data set, kept on disk: read in place of its pictures (beside ``stream``)."""
