"""A language model in two files: this one, and model.safetensors beside it. It needs Python 3.9, numpy, nothing else.

    python run.py                                    chat in the terminal
    python run.py --complete "Once upon a" -n 40     continue a text
    python run.py --help                             the other options

It reads from top to bottom: the weights, text as numbers, the network, the choice of the next token, the chat. Letters
in comments are sizes: T tokens read at once, S all tokens so far, D width, N heads, K heads of keys and of values,
G = N / K, H size of a head, F inner width, V vocabulary. Written by `jielong export`; Apache-2.0, as jielong is.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 9):  # noqa: UP036  (this file goes where jielong is not)
    sys.exit("run.py needs Python 3.9 or newer; this is " + sys.version.split()[0])

import argparse
import codecs
import io
import json
import math
import re
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from typing import Any

try:
    import numpy as np
except ImportError:
    sys.exit("run.py needs numpy; install it: python -m pip install numpy")

FORMAT = 1
# What the notes in the weights' header say of the network.
CONFIG: dict[str, type | tuple[type, ...]] = {
    "max_length": int, "decoder_layers": int, "num_heads": int, "num_kv_heads": int, "head_size": int, "qk_norm": bool,
    "positions": str, "rope_base": (int, float), "norm": str, "norm_eps": (int, float), "activation": str,
}  # fmt: skip
Array = np.ndarray[Any, Any]


class RunError(Exception):
    """Something that the user can put right; shown without a traceback."""


# ---- the weights -----------------------------------------------------------------------------------------------------


def read_safetensors(path: Path) -> tuple[dict[str, Array], dict[str, str]]:
    """Every tensor by name, and the notes beside them.

    The file is 8 bytes that say how long the header is, the header in JSON, then the numbers. It is mapped, not read:
    float32 weights come into memory as they are used.
    """
    try:
        data = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
        length = int.from_bytes(data[:8].tobytes(), "little")
        if length > len(data) - 8:
            raise ValueError(f"its header is said to have {length} bytes, the file has {len(data)}")
        header = json.loads(data[8 : 8 + length].tobytes())
        notes = header.pop("__metadata__", {})
        numbers = data[8 + length :]
        return {name: _tensor(numbers, entry) for name, entry in header.items()}, notes
    except FileNotFoundError:
        raise RunError(f"{path} is missing; it belongs beside run.py (or say --model FILE)") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{path} is cut off or no safetensors file ({error}); copy it again") from None


def _tensor(numbers: Array, entry: dict[str, Any]) -> Array:
    """One tensor as float32. bfloat16 is the upper half of a float32; numpy does not know it, but can shift."""
    start, end = entry["data_offsets"]
    if not 0 <= start <= end <= len(numbers):
        raise ValueError(f"a tensor lies at bytes {start} to {end} of {len(numbers)}")
    raw, kind = numbers[start:end], entry["dtype"]
    if kind == "F32":
        values = raw.view("<f4")
    elif kind == "F16":
        values = raw.view("<f2").astype(np.float32)
    elif kind == "BF16":
        values = (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    else:
        raise ValueError(f"a tensor has the type {kind}; known are F32, F16 and BF16")
    return values.reshape([int(size) for size in entry["shape"]])


# ---- text as numbers -------------------------------------------------------------------------------------------------


class _StandIns(dict[int, int]):
    """For str.translate: an ASCII character of the same kind for each that is not ASCII, found when first met."""

    def __missing__(self, code: int) -> int:
        category = unicodedata.category(chr(code))
        if code < 128:
            stand_in = chr(code)
        elif category[0] == "L":
            stand_in = "S" if code == 0x17F else "z"  # where case does not count, the long s is an s
        elif category[0] == "N":
            stand_in = "0"
        else:
            stand_in = "\t" if category[0] == "Z" or code == 0x85 else "!"
        self[code] = ord(stand_in)
        return ord(stand_in)


# Text is cut into pieces first, and merges never cross a cut. The patterns are those of Qwen2, Llama 3 and GPT-2; where
# they say "a letter of any script", these say A-Za-z, because they are matched against the text's ASCII stand-ins.
_TAIL = r"| ?[^\sA-Za-z0-9]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\nA-Za-z0-9]?[A-Za-z]+"
SPLITS = {
    "qwen2": re.compile(_WORD + r"|[0-9]" + _TAIL, re.ASCII),
    "llama-bpe": re.compile(_WORD + r"|[0-9]{1,3}" + _TAIL, re.ASCII),
    "gpt-2": re.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?[A-Za-z]+| ?[0-9]+| ?[^\sA-Za-z0-9]+|\s+(?!\S)|\s+", re.ASCII),
}


class Tokenizer:
    """Byte-level BPE: a text's bytes are joined pair by pair, in the order in which the joins were learned."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.tokens = [token.encode("latin-1") for token in data["tokens"]]  # by id; a control token is empty
        names = sorted((self.tokens[number].decode("utf-8") for number in data["added"]), key=len, reverse=True)
        self.added = re.compile("(" + "|".join(map(re.escape, names)) + ")") if names else None
        self.ids = {token: number for number, token in enumerate(self.tokens) if token}
        self.joins = {(left, right): (rank, joined) for rank, (left, right, joined) in enumerate(data["merges"])}
        self.split = SPLITS[data["split"]]
        self.whole_first: bool = data["ignore_merges"]
        self.normalise: str = data["normalise"]
        self.bos_id: int | None = data["bos_id"]
        self.prefix_ids: list[int] = data["prefix_ids"]  # before a text
        self.stop_ids: list[int] = data["stop_ids"]
        self.stand_ins = _StandIns()

    def encode(self, text: str) -> list[int]:
        """The ids of a text. No text becomes a control token, whatever it spells."""
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")  # no halves of characters
        # A few names, such as <think>, are tokens wherever a text spells them: every second part is one.
        parts = self.added.split(text) if self.added else [text]
        ids: list[int] = []
        for number, part in enumerate(parts):
            ids += [self.ids[part.encode("utf-8")]] if number % 2 else self._encode_plain(part)
        return ids

    def _encode_plain(self, text: str) -> list[int]:
        if self.normalise == "NFC":
            text = unicodedata.normalize("NFC", text)
        ids: list[int] = []
        for found in self.split.finditer(text.translate(self.stand_ins)):
            ids += self._join(text[found.start() : found.end()].encode("utf-8"))
        return ids

    def _join(self, piece: bytes) -> list[int]:
        if self.whole_first and piece in self.ids:
            return [self.ids[piece]]
        ids = [self.ids[piece[i : i + 1]] for i in range(len(piece))]
        while len(ids) > 1:
            pairs = [pair for pair in _pairs(ids) if pair in self.joins]
            if not pairs:
                break
            best = min(pairs, key=lambda pair: self.joins[pair][0])
            joined, i = [], 0
            while i < len(ids):
                if tuple(ids[i : i + 2]) == best:
                    joined.append(self.joins[best][1])
                    i += 2
                else:
                    joined.append(ids[i])
                    i += 1
            ids = joined
        return ids


def _pairs(ids: list[int]) -> Iterator[tuple[int, int]]:
    return ((ids[i], ids[i + 1]) for i in range(len(ids) - 1))


# ---- the network -----------------------------------------------------------------------------------------------------


class Cache:
    """The keys and values (K, S, H) of each layer for the tokens already read, so that none is computed twice."""

    def __init__(self, num_layers: int) -> None:
        self.ids: list[int] = []
        self.keys: list[Array | None] = [None] * num_layers
        self.values: list[Array | None] = [None] * num_layers

    def cut(self, length: int) -> None:
        """Forget all tokens from `length` on; what was kept of them is written over."""
        del self.ids[length:]

    def add(self, layer: int, keys: Array, values: Array) -> tuple[Array, Array]:
        """Keep the new (K, T, H), and return all of them, (K, S, H). `ids` is extended after the last layer."""
        start, end = len(self.ids), len(self.ids) + keys.shape[1]
        for kept, new in ((self.keys, keys), (self.values, values)):
            old = kept[layer]
            if old is None or old.shape[1] < end:  # twice the room, so that copying stays rare
                room = np.zeros((keys.shape[0], max(2 * end, 64), keys.shape[2]), dtype=np.float32)
                if old is not None:
                    room[:, :start] = old[:, :start]
                kept[layer] = old = room
            old[:, start:end] = new
        all_keys, all_values = self.keys[layer], self.values[layer]
        assert all_keys is not None and all_values is not None
        return all_keys[:, :end], all_values[:, :end]


class Model:
    """A decoder: ids in, a score for each possible next token out."""

    def __init__(self, path: Path) -> None:
        self.weights, notes = read_safetensors(path)
        try:
            data = json.loads(notes["jielong"])
            if data["format"] != FORMAT:
                raise RunError(f"{path} has format {data['format']}, not {FORMAT}: export both files again")
            self.config, self.joints = data["config"], data["joints"]
            for key, kind in CONFIG.items():
                if not isinstance(self.config[key], kind):
                    raise TypeError(key)
            for name, shape in data["shapes"].items():
                if list(self.weights[name].shape) != shape:
                    raise RunError(f"{path}: {name} has shape {self.weights[name].shape}, not {shape}: export it again")
            self.tokenizer = Tokenizer(data["tokenizer"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise RunError(f"{path} was not written by `jielong export --to two-files` (without {error})") from None
        self.max_length: int = self.config["max_length"]
        half = np.arange(0, self.config["head_size"], 2, dtype=np.float32) / np.float32(self.config["head_size"])
        self.frequencies = np.float32(self.config["rope_base"]) ** -half  # (H/2,) radians a position
        if "rope.divisors" in self.weights:  # stretched for a longer context than the one first trained on
            self.frequencies = self.frequencies / self.weights["rope.divisors"]

    def read(self, ids: list[int], cache: Cache) -> Array:
        """Read the ids after those in the cache; the scores (V,) of what comes next."""
        x = np.zeros((1, 1), dtype=np.float32)
        for start in range(0, len(ids), 256):  # in blocks: attention needs memory for T times S numbers
            block = ids[start : start + 256]
            x = self._layers(block, cache)
            cache.ids += block
        output = self.weights.get("unembedding.weight", self.weights["embed.weight"])  # (V, D); often one matrix
        scores: Array = output @ x[-1]
        if not np.isfinite(scores).all():
            raise RunError("the scores are not finite numbers: the weights are damaged, copy model.safetensors again")
        return scores

    def _layers(self, ids: list[int], cache: Cache) -> Array:
        positions = np.arange(len(cache.ids), len(cache.ids) + len(ids))
        x = self.weights["embed.weight"][ids]  # (T, D)
        if self.config["positions"] == "learned":
            x = x + self.weights["positions.weight"][positions]
        for layer in range(self.config["decoder_layers"]):
            name = f"layers.{layer}."
            mixed = self._attend(layer, self._norm(x, name + "attention_norm"), positions, cache)
            x = x + self._linear(mixed, name + "attention.out")
            x = x + self._feed_forward(self._norm(x, name + "ffn_norm"), name + "ffn.")
        return self._norm(x, "norm")

    def _attend(self, layer: int, x: Array, positions: Array, cache: Cache) -> Array:
        """Each token asks (query) those up to itself (keys) and takes in a weighted mean of what they say (values)."""
        num_heads, num_kv = self.config["num_heads"], self.config["num_kv_heads"]
        name = f"layers.{layer}.attention."
        heads = self._linear(x, name + "qkv").reshape(len(x), num_heads + 2 * num_kv, -1)  # (T, N + 2K, H)
        queries, keys, values = np.split(heads, [num_heads, num_heads + num_kv], axis=1)
        if self.config["qk_norm"]:
            queries, keys = self._norm(queries, name + "q_norm"), self._norm(keys, name + "k_norm")
        if self.config["positions"] == "rotary":
            angles = positions.astype(np.float32)[:, None, None] * self.frequencies  # (T, 1, H/2)
            queries, keys = _rotate(queries, angles), _rotate(keys, angles)
        keys, values = cache.add(layer, keys.transpose(1, 0, 2), values.transpose(1, 0, 2))  # (K, S, H)
        # G query heads share a head of keys: their rows are stacked. (T, K, G, H) -> (K, G, T, H) -> (K, G T, H)
        size = queries.shape[-1]
        queries = queries.reshape(len(x), num_kv, -1, size).transpose(1, 2, 0, 3).reshape(num_kv, -1, size)
        scores = queries @ keys.transpose(0, 2, 1) / np.float32(math.sqrt(size))  # (K, G T, S)
        future = np.arange(keys.shape[1]) > positions[:, None]  # (T, S)
        scores = np.where(future, np.float32(-np.inf), scores.reshape(num_kv, -1, *future.shape))  # (K, G, T, S)
        mixed = softmax(scores).reshape(num_kv, -1, keys.shape[1]) @ values  # (K, G T, H)
        return mixed.reshape(num_kv, -1, len(x), size).transpose(2, 0, 1, 3).reshape(len(x), -1)  # (T, N H)

    def _feed_forward(self, x: Array, name: str) -> Array:
        inner = self._linear(x, name + "up")  # (T, F)
        if self.config["activation"] == "swiglu":
            gate = self._linear(x, name + "gate")
            inner = inner * gate / (1 + np.exp(-gate))
        else:  # gelu_tanh
            cubic = inner + np.float32(0.044715) * inner**3
            inner = inner / 2 * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * cubic))
        return self._linear(inner, name + "down")

    def _norm(self, x: Array, name: str) -> Array:
        """Scale each row to size 1 (RMSNorm), after moving it to mean 0 where the model asks for that (LayerNorm)."""
        if self.config["norm"] == "layer":
            x = x - x.mean(axis=-1, keepdims=True)
        squares = np.mean(x * x, axis=-1, keepdims=True)
        x = x / np.sqrt(squares + np.float32(self.config["norm_eps"])) * self.weights[name + ".weight"]
        bias = self.weights.get(name + ".bias")
        return x if bias is None else x + bias

    def _linear(self, x: Array, name: str) -> Array:
        bias = self.weights.get(name + ".bias")
        y: Array = x @ self.weights[name + ".weight"].T
        return y if bias is None else y + bias


def _rotate(x: Array, angles: Array) -> Array:
    """Turn each pair (i, i + H/2) of a head by its angle, so that a product of two tells how far apart they stand."""
    left, right = np.split(x, 2, axis=-1)
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate((left * cos - right * sin, right * cos + left * sin), axis=-1)


def softmax(scores: Array) -> Array:
    """Scores as probabilities along the last axis; the greatest is taken off first so that exp stays in range."""
    powers = np.exp(scores - scores.max(axis=-1, keepdims=True))
    total: Array = powers / powers.sum(axis=-1, keepdims=True)
    return total


# ---- the next token --------------------------------------------------------------------------------------------------


class Sampler:
    """Temperature, then only the top_k likeliest (0: all), then only those that make up top_p of the whole (1: all)."""

    def __init__(self, temperature: float = 0.0, top_k: int = 0, top_p: float = 1.0, seed: int = 0) -> None:
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.random = np.random.default_rng(seed)

    def choose(self, scores: Array) -> int:
        """One id; at temperature 0 the likeliest."""
        if self.temperature == 0:
            return int(scores.argmax())
        order = np.argsort(-scores, kind="stable")[: self.top_k or None]
        odds = softmax(scores[order].astype(np.float64) / self.temperature)
        kept = odds.cumsum() - odds < self.top_p  # the one that crosses p included
        return int(self.random.choice(order[kept], p=odds[kept] / odds[kept].sum()))


def generate(
    model: Model, ids: list[int], num: int, sampler: Sampler, cache: Cache, stop_ids: list[int]
) -> Iterator[int]:
    """Up to `num` ids after `ids`, the stop id included. Reads only what the cache does not hold already."""
    if len(ids) >= model.max_length:
        raise RunError(f"the text has {len(ids)} tokens, the model reads {model.max_length}; shorten it")
    same = 0
    while same < min(len(cache.ids), len(ids) - 1) and cache.ids[same] == ids[same]:
        same += 1
    cache.cut(same)
    new = ids[same:]
    for _ in range(min(num, model.max_length - len(ids))):
        new = [sampler.choose(model.read(new, cache))]
        yield new[0]
        if new[0] in stop_ids:
            return


def stream(model: Model, ids: Iterator[int]) -> Iterator[str]:
    """The ids as text, piece by piece; a character whose bytes come in two tokens is held back until it is whole."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for number in ids:
        yield decoder.decode(model.tokenizer.tokens[number])
    yield decoder.decode(b"", final=True)


# ---- the chat --------------------------------------------------------------------------------------------------------


class Chat:
    """A conversation. Control tokens are put in by id, so that nothing a person types can pass for one."""

    def __init__(self, model: Model, sampler: Sampler, num: int, system: str = "") -> None:
        if model.joints is None:
            raise RunError("this model has no chat format; continue a text instead: python run.py --complete TEXT")
        if system and model.joints["system_first"] is None:
            raise RunError("this model's chat format has no system message; leave out --system")
        self.model, self.sampler, self.num, self.system = model, sampler, num, system
        self.turns: list[tuple[str, str]] = []  # (what was asked, what was answered)
        self.cache = Cache(model.config["decoder_layers"])

    def prompt(self, text: str) -> list[int]:
        """The ids of the conversation with `text` as its last message, up to where the answer begins."""
        joints, encode = self.model.joints, self.model.tokenizer.encode
        ids = [*joints["user_first"]]
        if self.system:
            ids = joints["system_first"] + encode(self.system) + joints["system_user"]
        for asked, answered in self.turns:
            ids += encode(asked) + joints["user_assistant"] + encode(answered) + joints["assistant_user"]
        return ids + encode(text) + joints["reply"]

    def ask(self, text: str) -> Iterator[str]:
        """The answer, piece by piece. The oldest turns are forgotten when the model's context is full."""
        room = min(self.num, self.model.max_length // 4)
        ids = self.prompt(text)
        while self.turns and len(ids) + room > self.model.max_length:
            del self.turns[0]
            ids = self.prompt(text)
        stop_ids, said = self.model.tokenizer.stop_ids, ""
        self.turns.append((text, said))  # kept also when the reader stops half-way
        try:
            for piece in stream(self.model, generate(self.model, ids, self.num, self.sampler, self.cache, stop_ids)):
                said += piece
                self.turns[-1] = (text, said)
                yield piece
        except RunError:
            self.turns.pop()
            raise


def talk(chat: Chat) -> None:
    """Read turns until the input ends. Without a terminal, one turn a line, and only answers are written."""
    is_terminal = sys.stdin.isatty()
    if is_terminal:
        print("/reset forgets the conversation, /quit leaves; Ctrl-C stops an answer")
    while True:
        try:
            text = input("\n> " if is_terminal else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if text == "/quit":
            return
        if text == "/reset":
            chat.turns.clear()
        elif text:
            try:
                for piece in chat.ask(text):
                    print(piece, end="", flush=True)
                print()
            except KeyboardInterrupt:
                print(" (stopped)")
            except RunError as error:
                print(f"({error})", file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Chat with the model in model.safetensors, or continue a text. Needs numpy only.",
        epilog="examples:\n  python run.py\n  python run.py --complete 'Once upon a' -n 40\n"
        "  echo 'What is 12 + 30?' | python run.py --temperature 0",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--complete", metavar="TEXT", help="continue this text instead of chatting")
    parser.add_argument("-n", type=int, default=256, metavar="TOKENS", help="most new tokens an answer (256)")
    parser.add_argument("--temperature", type=float, help="0: always the likeliest token (chat 0.7, --complete 0)")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="only the K likeliest tokens (0: all)")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="only tokens that make up P (1: all)")
    parser.add_argument("--seed", type=int, default=0, help="equal seeds, equal texts (0)")
    parser.add_argument("--system", default="", metavar="TEXT", help="a system message to start the chat with")
    parser.add_argument("--model", type=Path, metavar="FILE", help="the weights (model.safetensors beside run.py)")
    options = parser.parse_args()
    if options.temperature is None:
        options.temperature = 0.7 if options.complete is None else 0.0
    if not (options.n > 0 and 0 <= options.temperature < math.inf and options.top_k >= 0 and 0 < options.top_p <= 1):
        parser.error("legal are -n from 1, --temperature from 0, --top-k from 0, --top-p above 0 and up to 1")
    return options


def main() -> None:
    """What the command line asks for."""
    options = _options()
    for channel in (sys.stdin, sys.stdout):  # UTF-8 also where the system's habit is another
        if isinstance(channel, io.TextIOWrapper):
            channel.reconfigure(encoding="utf-8", errors="replace")
    try:
        model = Model(options.model or Path(__file__).resolve().parent / "model.safetensors")
        sampler = Sampler(options.temperature, options.top_k, options.top_p, options.seed)
        if options.complete is None:
            talk(Chat(model, sampler, options.n, options.system))
            return
        tokenizer = model.tokenizer
        ids = tokenizer.prefix_ids + tokenizer.encode(options.complete)
        if not ids:
            if tokenizer.bos_id is None:
                raise RunError("this model has no token to begin with; give some text to --complete")
            ids = [tokenizer.bos_id]
        made = generate(model, ids, options.n, sampler, Cache(model.config["decoder_layers"]), tokenizer.stop_ids)
        print(options.complete, end="")
        for piece in stream(model, made):
            print(piece, end="", flush=True)
        print()
    except RunError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
