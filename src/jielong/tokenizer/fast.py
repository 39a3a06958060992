"""tiktoken in place of Hugging Face `tokenizers`, where both give the same ids for every text.

tiktoken joins the two neighbours whose joined bytes have the lowest id; `tokenizers` joins the pair that stands first
in the list of merges. The two are the same process if ids grow along that list, and from parts to joins, and every
token, encoded alone by the merges, is itself: then at the moment when a token could be made, the text under it has been
joined into exactly the two parts of its merge, whatever stands around it. Tokens of which that is not true are allowed
where all ways to split them are merges. Anything else, and any split pattern that has not been compared character by
character, is left to `tokenizers`.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import tiktoken
import tokenizers

from jielong.tokenizer.spelling import NUM_BYTES, unspell

# The split pattern of Qwen2, which llama.cpp knows by the name "qwen2": contractions, a word with at most one mark
# before it, single digits, marks with the line ends after them, line ends, blanks. Merges never cross a split.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = QWEN2_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
# What ByteLevel with "use_regex" splits by.
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def merge_pair(merge: object) -> tuple[str, str]:
    """The parts of an entry of "merges": a pair or, in older files, a text with a blank. Raises ValueError."""
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list | tuple) or len(parts) != 2 or not all(isinstance(part, str) for part in parts):
        raise ValueError(f"{merge!r} is no pair of tokens")
    return parts[0], parts[1]


def fast_encoding(document: Mapping[str, Any], control: Collection[str]) -> tiktoken.Encoding | None:
    """tiktoken for the content of a tokenizer.json; None where it would not give the same ids, or that is not certain.

    control: tokens that text never becomes. The normaliser and the added tokens of the document are the caller's task.
    """
    split, model = split_pattern(document.get("pre_tokenizer")), document["model"]
    odd = ("dropout", "byte_fallback", "continuing_subword_prefix", "end_of_word_suffix")
    if split is None or model.get("type") != "BPE" or any(model.get(key) for key in odd):
        return None
    vocab = {token: number for token, number in model["vocab"].items() if token not in control}
    merges = [merge_pair(merge) for merge in model["merges"]]
    if not model.get("ignore_merges"):  # then what no merge makes is never made
        made = {left + right for left, right in merges}
        vocab = {token: number for token, number in vocab.items() if token in made or len(token) == 1}
    try:
        ranks = {unspell(token): number for token, number in vocab.items()}
        numbers = [vocab[left + right] for left, right in merges]
        in_order = all(max(vocab[left], vocab[right]) < vocab[left + right] for left, right in merges)
    except KeyError:
        return None
    in_order = in_order and all(before <= after for before, after in zip(numbers, numbers[1:], strict=False))
    complete = all(bytes([byte]) in ranks for byte in range(NUM_BYTES))
    if not complete or not in_order or not _same_process(vocab, merges, bool(model.get("ignore_merges"))):
        return None
    # Given its ranks, tiktoken has nothing to download.
    return tiktoken.Encoding("jielong", pat_str=split, mergeable_ranks=ranks, special_tokens={})


def split_pattern(pre_tokenizer: object) -> str | None:
    """The pattern by which a byte-level pre-tokenizer splits, if it is one of the three that were compared."""
    if not isinstance(pre_tokenizer, dict):
        return None
    parts = pre_tokenizer.get("pretokenizers") if pre_tokenizer.get("type") == "Sequence" else [pre_tokenizer]
    if not isinstance(parts, list) or not parts or not all(isinstance(part, dict) for part in parts):
        return None
    *splits, last = parts
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space"):
        return None
    if not splits:
        return GPT2_SPLIT if last.get("use_regex", True) else None
    first = splits[0]
    plain = len(splits) == 1 and not last.get("use_regex", True) and first.get("type") == "Split"
    if not plain or first.get("behavior") != "Isolated" or first.get("invert"):
        return None
    pattern = first.get("pattern")
    found = pattern.get("Regex") if isinstance(pattern, dict) else None
    return found if found in (QWEN2_SPLIT, LLAMA3_SPLIT, GPT2_SPLIT) else None


def _same_process(vocab: Mapping[str, int], merges: list[tuple[str, str]], whole_first: bool) -> bool:
    """True if joining by lowest id and joining by first merge are the same. whole_first: a piece is looked up first."""
    tokens = list(vocab)
    merger = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=dict(vocab), merges=merges))
    alone = merger.encode_batch_fast(tokens, add_special_tokens=False)
    doubtful = [token for token, found in zip(tokens, alone, strict=True) if found.ids != [vocab[token]]]
    if doubtful and not whole_first:
        return False
    pairs = set(merges)
    return all(
        (token[:cut], token[cut:]) in pairs
        for token in doubtful
        for cut in range(1, len(token))
        if token[:cut] in vocab and token[cut:] in vocab
    )
