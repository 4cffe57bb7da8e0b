"""What lets no run be lost: run folder, checkpoints, resuming, signals, initial weights."""
