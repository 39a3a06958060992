"""llama.cpp on a GGUF file: one answer to a probe (tokens, log-probabilities, ids of texts, a chat), or many as asked.

llama.cpp runs in a process of its own, because it ends the process it is in when it dislikes a file: `python -m
jielong.export.llamacpp FILE`, what is wanted as JSON on stdin, the answer on stdout. The only module that imports
`xllamacpp`.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import secrets
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from jielong.errors import ModelError, UsageError
from jielong.export.probe import Answer, Probe

SECONDS = 1800


def is_installed() -> bool:
    """Whether `run_llamacpp` can run: xllamacpp is an extra, pip install 'jielong[llamacpp]'."""
    return importlib.util.find_spec("xllamacpp") is not None


def need_llamacpp() -> None:
    """Raises UsageError saying what to install when the extra is not there."""
    if not is_installed():
        raise UsageError("llama.cpp runs through the package xllamacpp; install it: pip install 'jielong[llamacpp]'")


def run_llamacpp(path: Path, probe: Probe, num_threads: int) -> Answer:
    """Load the file, with float32 keys and values, and decode greedily.

    Raises ModelError when llama.cpp does not load it or gives no answer.
    """
    request = {
        "prompts": probe.prompts,
        "num_tokens": probe.num_tokens,
        "texts": probe.texts,
        "conversation": probe.conversation,
        "threads": num_threads,
    }
    try:
        done = subprocess.run(_command(path), input=json.dumps(request).encode(), capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise ModelError(f"{path.name}: llama.cpp gave no answer in {SECONDS} seconds") from None
    if done.returncode:
        raise _refused(path, done.stderr, done.returncode)
    answer = json.loads(done.stdout)
    return Answer(answer["tokens"], answer["logprobs"], answer["ids"], answer["chat"])


def _command(path: Path) -> list[str]:
    return [sys.executable, "-m", "jielong.export.llamacpp", str(path)]


def _refused(path: Path, told: bytes, returncode: int) -> ModelError:
    """llama.cpp's own words about a file. told: its stderr."""
    lines = told.decode("utf-8", "replace").strip().splitlines()
    found = [line for line in lines if "error" in line.lower()] or lines or [f"exit code {returncode}"]
    return ModelError(f"{path.name}: llama.cpp does not take it: {found[0].strip()}")


class Listening:
    """llama.cpp with a file loaded, in a process of its own that answers until `close`, or the end of this process.

    rows: how many texts it decodes beside each other; context: tokens of each. It listens on this machine only, to who
    has the key of this object. Raises ModelError when it does not take the file.
    """

    def __init__(self, path: Path, rows: int, context: int, threads: int) -> None:
        self._key = secrets.token_urlsafe(32)
        wanted = {"rows": rows, "context": context, "threads": threads, "key": self._key}
        self._told = tempfile.TemporaryFile()  # a pipe that nobody reads would fill
        pipe = subprocess.PIPE
        # Not of this terminal: Ctrl-C there stops an answer and is not for this process. That ends when its stdin does.
        self._process = subprocess.Popen(
            _command(path), stdin=pipe, stdout=pipe, stderr=self._told, start_new_session=True
        )
        try:
            self._address = self._begin(path, wanted)
        except BaseException:
            self.close()
            raise
        # A proxy has no business between the two.
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def _begin(self, path: Path, wanted: dict[str, Any]) -> str:
        """Have it load the file: the address that it then listens at."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(wanted).encode() + b"\n")
            self._process.stdin.flush()
            first = self._process.stdout.readline()
        except BrokenPipeError:
            first = b""
        if not first:
            returncode = self._process.wait()
            self._told.seek(0)
            raise _refused(path, self._told.read(), returncode)
        address: str = json.loads(first)["address"]
        return address

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._told):
            if pipe is not None:
                with suppress(BrokenPipeError):  # what it was to read, and has not
                    pipe.close()

    def post(self, body: dict[str, Any]) -> dict[str, Any]:
        """What /completion answers at the end. Raises ModelError when it refuses, or is gone."""
        with self._open(body) as reply:
            answer: dict[str, Any] = json.load(reply)
        return answer

    def stream(self, body: dict[str, Any]) -> Iterator[str]:
        """The text of /completion as it is made. Leaving it ends the work. Raises ModelError as `post`."""
        with self._open({**body, "stream": True}) as reply:
            is_whole = False
            for line in reply:
                if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                    piece = json.loads(line[len(b"data: ") :])
                    if "error" in piece:
                        raise ModelError(f"llama.cpp failed: {piece['error']}")
                    if piece["content"]:
                        yield piece["content"]
                    is_whole = bool(piece.get("stop"))
            if not is_whole:  # one that breaks off between two pieces reads as one that has ended
                raise http.client.IncompleteRead(b"")

    @contextmanager
    def _open(self, body: dict[str, Any]) -> Iterator[Any]:
        """The reply of /completion, to be read inside."""
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        request = urllib.request.Request(f"{self._address}/completion", json.dumps(body).encode(), headers)
        try:
            with self._opener.open(request, timeout=SECONDS) as reply:
                yield reply
        except urllib.error.HTTPError as error:
            said = error.read().decode("utf-8", "replace")
            raise ModelError(f"llama.cpp refused with {error.code}: {said:.300}") from None
        # It went before it answered, or in the middle: what came then is no whole reply.
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            raise ModelError(f"llama.cpp's process does not answer ({error}); start anew") from None


def _params(path: str, context: int, rows: int, threads: int) -> Any:
    """In the process of its own: what llama.cpp is to load, on the CPU, and how much it is to hold."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx, params.n_parallel = rows * context, rows
    params.warmup = params.fit_params = False
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    return params


def _listen(path: str, wanted: dict[str, Any]) -> None:
    """In the process of its own: answer over HTTP until stdin is closed. Tells the address on stdout."""
    import xllamacpp

    params = _params(path, wanted["context"], wanted["rows"], wanted["threads"])
    params.api_keys = [wanted["key"]]
    server = xllamacpp.Server(params)  # it answers as long as this name is held
    print(json.dumps({"address": server.listening_address}), flush=True)
    sys.stdin.read()


def _answer(path: str, request: dict[str, Any]) -> dict[str, Any]:
    """In the process of its own: load, and answer what is asked."""
    import xllamacpp

    longest = max((len(prompt) for prompt in request["prompts"]), default=0)
    params = _params(path, longest + request["num_tokens"] + 1, 1, request["threads"])
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)  # it answers as long as this name is held
    address = server.listening_address
    # A proxy has no business between the two.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def post(place: str, **body: Any) -> dict[str, Any]:
        data = json.dumps(body).encode()
        with opener.open(urllib.request.Request(address + place, data, {"Content-Type": "application/json"})) as reply:
            answer: dict[str, Any] = json.load(reply)
        return answer

    answer: dict[str, Any] = {"tokens": [], "logprobs": [], "ids": [], "chat": None}
    for prompt in request["prompts"]:
        made = post(
            "/completion", prompt=prompt, n_predict=request["num_tokens"], temperature=0.0, samplers=["temperature"],
            return_tokens=True, n_probs=1, cache_prompt=False,
        )  # fmt: skip
        answer["tokens"].append(made["tokens"])
        logprobs = [each["logprob"] for each in made.get("completion_probabilities", [])]
        # It leaves out tokens that end inside a character, and does not say which.
        answer["logprobs"].append(logprobs if len(logprobs) == len(made["tokens"]) else [])
    for text in request["texts"]:
        answer["ids"].append(post("/tokenize", content=text, add_special=False, parse_special=False)["tokens"])
    if request["conversation"]:
        prompt = post("/apply-template", messages=request["conversation"])["prompt"]
        answer["chat"] = post("/tokenize", content=prompt, add_special=True, parse_special=True)["tokens"]
    return answer


if __name__ == "__main__":
    line = json.loads(sys.stdin.readline())
    if "key" in line:
        _listen(sys.argv[1], line)
    else:
        sys.stdout.write(json.dumps(_answer(sys.argv[1], line)))
