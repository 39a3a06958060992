"""The Transformer: configuration, layers, log-probabilities and the model folder."""
