"""Text to ids and back: byte-level BPE (`tokenizer`), its files (`hf`) and conversations as ids (`chat`)."""

from jielong.tokenizer.tokenizer import TextStream, Tokenizer

__all__ = ["TextStream", "Tokenizer"]
