"""Models as pure functions, their checkpoints, weights and tokenizers."""
