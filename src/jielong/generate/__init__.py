"""Text from a model: the slow oracle (`simple`), the key-value cache, sampling, and the batched engine."""
