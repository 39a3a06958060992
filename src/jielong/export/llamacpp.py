"""What llama.cpp makes of a GGUF file: tokens, log-probabilities, token ids of texts, a rendered chat.

llama.cpp runs in a process of its own (`python -m jielong.export.llamacpp FILE`, a request on stdin, the answer on
stdout), because it ends the process it is in when it dislikes a file. The only module that imports `xllamacpp`.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

from jielong.errors import ModelError
from jielong.export.probe import Answer, Probe

SECONDS = 1800


def is_installed() -> bool:
    """Whether `run_llamacpp` can run: xllamacpp is an extra, pip install 'jielong[llamacpp]'."""
    return importlib.util.find_spec("xllamacpp") is not None


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
    command = [sys.executable, "-m", "jielong.export.llamacpp", str(path)]
    try:
        done = subprocess.run(command, input=json.dumps(request).encode(), capture_output=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        raise ModelError(f"{path.name}: llama.cpp gave no answer in {SECONDS} seconds") from None
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
        found = [line for line in lines if "error" in line.lower()] or lines or [f"exit code {done.returncode}"]
        raise ModelError(f"{path.name}: llama.cpp does not take it: {found[0].strip()}")
    answer = json.loads(done.stdout)
    return Answer(answer["tokens"], answer["logprobs"], answer["ids"], answer["chat"])


def _serve(path: str, request: dict[str, Any]) -> dict[str, Any]:
    """In the process of its own: load, and answer what is asked."""
    import xllamacpp

    longest = max((len(prompt) for prompt in request["prompts"]), default=0)
    params = xllamacpp.CommonParams()
    params.model.path = path
    params.n_ctx = longest + request["num_tokens"] + 1
    params.n_parallel = 1
    params.warmup = False
    params.fit_params = False
    params.n_gpu_layers = 0
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = request["threads"]
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
    told = json.dumps(_serve(sys.argv[1], json.load(sys.stdin)))
    sys.stdout.write(told)
