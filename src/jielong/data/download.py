"""Fetch one file over HTTP(S) or from the Hugging Face hub: resumable, verified, placed in one step.

A download grows in ``NAME.part`` beside its target and is renamed to NAME only when it is complete and its sha256 is
right, so a file under its own name is always whole. An interrupted download goes on where it stopped, if the server can
(Range) and the file there is provably still the same one (its ETag or Last-Modified, kept in ``NAME.part.tag``, or a
sha256 to check at the end).
"""

from __future__ import annotations

import hashlib
import http.client
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from jielong.errors import DataError

Progress = Callable[[int, "int | None"], None]  # (bytes so far, bytes in all or None when the server does not say)

_ATTEMPTS = 5
_BLOCK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 60.0


class _Interrupted(Exception):
    """The transfer broke in a way that a second try may repair."""


def download(
    url: str,
    target: Path,
    sha256: str | None = None,
    progress: Progress | None = None,
    wait: Callable[[float], None] = time.sleep,
) -> Path:
    """Bring `url` to `target` and return `target`.

    Tries up to 5 times, waiting 1, 2, 4, 8 seconds through `wait`. On a checksum mismatch nothing is kept; on a broken
    line the ``.part`` stays for the next call.

    Raises: DataError for an unknown scheme, an HTTP error, a transfer that stays broken, a wrong sha256, a full disk.
    """
    if not url.startswith(("http://", "https://", "hf://")):
        raise DataError(f"cannot download {url!r}: legal are http://, https:// and hf://datasets/OWNER/NAME/FILE")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")
        if url.startswith("hf://"):
            _copy_from_hub(url, part)
        else:
            _transfer_with_retries(url, part, sha256 is not None, progress, wait)
        _verify(url, part, sha256)
        _place(part, target)
    except OSError as error:
        raise DataError(f"cannot store {url} as {target}: {error.strerror or error}") from error
    return target


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's bytes, read block by block."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _verify(url: str, part: Path, sha256: str | None) -> None:
    if sha256 is None:
        return
    actual = file_sha256(part)
    if actual != sha256.lower():
        part.unlink()
        _tag_file(part).unlink(missing_ok=True)
        raise DataError(
            f"{url} is not the file that was expected: sha256 is {actual}, expected {sha256.lower()}; nothing was "
            "kept. Correct the sha256 of this source if its publisher has replaced the file."
        )


def _place(part: Path, target: Path) -> None:
    with open(part, "rb+") as file:
        os.fsync(file.fileno())
    os.replace(part, target)
    _tag_file(part).unlink(missing_ok=True)


def _tag_file(part: Path) -> Path:
    return part.with_name(part.name + ".tag")


def _transfer_with_retries(
    url: str, part: Path, verified: bool, progress: Progress | None, wait: Callable[[float], None]
) -> None:
    reason = ""
    for attempt in range(_ATTEMPTS):
        if attempt:
            wait(2.0 ** (attempt - 1))
        try:
            _transfer(url, part, verified, progress)
            return
        except _Interrupted as error:
            reason = str(error)
    size = part.stat().st_size if part.exists() else 0
    raise DataError(
        f"download of {url} failed {_ATTEMPTS} times, last: {reason}; {size} bytes are kept in {part.name}, "
        "the same command goes on from there"
    )


def _transfer(url: str, part: Path, verified: bool, progress: Progress | None) -> None:
    """One attempt: append to `part` if the server agrees to go on, else begin anew.

    Raises: _Interrupted when another attempt may help; DataError when it cannot.
    """
    tag_file = _tag_file(part)
    tag = tag_file.read_text(encoding="utf-8") if tag_file.exists() else ""
    start = part.stat().st_size if part.exists() and (tag or verified) else 0
    headers = {"User-Agent": "jielong", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
        if tag:
            headers["If-Range"] = tag  # a changed file is then sent whole (200) instead of its tail
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=_TIMEOUT_SECONDS) as response:
            if response.status != 206 or not (response.headers.get("Content-Range") or "").startswith(
                f"bytes {start}-"
            ):
                start = 0
            new_tag = _strong_tag(response.headers.get("ETag"), response.headers.get("Last-Modified"))
            tag_file.write_text(new_tag, encoding="utf-8")
            length = response.headers.get("Content-Length")
            total = start + int(length) if length and length.isdigit() else None
            received = _append(response, part, start, total, progress)
    except urllib.error.HTTPError as error:
        _judge_status(url, part, start, error)
        return
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        reason = error.reason if isinstance(error, urllib.error.URLError) else error
        raise _Interrupted(str(reason) or type(error).__name__) from error
    if total is not None and received != total:
        raise _Interrupted(f"the connection ended after {received} of {total} bytes")


def _append(
    response: http.client.HTTPResponse, part: Path, start: int, total: int | None, progress: Progress | None
) -> int:
    """Write the body behind the first `start` bytes of `part`; returns the file's size."""
    received = start
    with open(part, "ab" if start else "wb") as file:
        if progress:
            progress(received, total)
        while block := response.read(_BLOCK_BYTES):
            file.write(block)
            received += len(block)
            if progress:
                progress(received, total)
    return received


def _judge_status(url: str, part: Path, start: int, error: urllib.error.HTTPError) -> None:
    """Return if the file is already complete; else raise what the HTTP status means for another attempt."""
    if error.code == 416 and start:
        if (error.headers.get("Content-Range") or "") == f"bytes */{start}":
            return
        part.unlink()  # longer than the file on the server, so not its beginning
        raise _Interrupted("the server's file is shorter than the part held here")
    if error.code in (408, 429) or error.code >= 500:
        raise _Interrupted(f"HTTP {error.code} {error.reason}")
    hint = "the address is wrong or the file has moved" if error.code in (404, 410) else "the server refuses it"
    raise DataError(f"cannot download {url}: HTTP {error.code} {error.reason} ({hint})")


def _strong_tag(etag: str | None, modified: str | None) -> str:
    """What proves later that the file is the same: If-Range takes a strong ETag or a date, never a weak ETag."""
    if etag and not etag.startswith("W/"):
        return etag
    return modified or ""


def _copy_from_hub(url: str, part: Path) -> None:
    """hf://datasets/OWNER/NAME[@REVISION]/FILE through huggingface_hub, which resumes and caches by itself."""
    pieces = url.removeprefix("hf://").split("/", 3)
    if len(pieces) < 4 or pieces[0] != "datasets" or not all(pieces):
        raise DataError(f"{url!r} is not of the form hf://datasets/OWNER/NAME/FILE (or OWNER/NAME@REVISION/FILE)")
    try:
        import huggingface_hub
    except ImportError as error:
        raise DataError(f"{url} needs huggingface_hub: pip install 'jielong[curate]'") from error
    _, owner, name, filename = pieces
    name, _, revision = name.partition("@")
    try:
        cached = huggingface_hub.hf_hub_download(
            repo_id=f"{owner}/{name}", filename=filename, repo_type="dataset", revision=revision or None
        )
    except Exception as error:  # the hub's own tree of errors is wide and changes with its versions
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"cannot download {url}: {reason}") from error
    shutil.copyfile(cached, part)
