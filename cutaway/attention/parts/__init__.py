"""What mechanisms share: who sees whom, how scores are computed, what is remembered."""
