"""The endless stream of batches: global order, sources, choice, collation, worker processes, shared buffers."""
