"""Features → LossTerms; home of the collectives."""
