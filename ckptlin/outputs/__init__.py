"""What a model says, checkpoint by checkpoint: log-probabilities of tokens, activations, mixed logits."""
