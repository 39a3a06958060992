"""From sources to rows: reading, curating, converting, packing, loading. Knows the tokenizer, never the model."""
