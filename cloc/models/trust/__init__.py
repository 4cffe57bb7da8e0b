"""What files of others may say, and which classes they may name."""
