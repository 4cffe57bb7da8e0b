"""Long work on shards: worker processes, jobs that continue after a kill, and the count of what they did."""
