"""The page and its parts: files of `web/`, read once, served from memory. No path of a client ever reaches a disk.

`web/` lies beside this file; where there is no index.html there is no page. What the page asks for itself stands under
/api/ (`page.routes`), behind the same gate as everything else.
"""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from dataclasses import dataclass
from pathlib import Path

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from jielong.serve.errors import ApiError

WEB = Path(__file__).parent / "web"
FACES = ("/", "/inside", "/training", "/playground")
REPORT = "/report"
# Nothing from elsewhere, nothing inline, no frames around it, no plug-ins; a form of the page sends nothing anywhere.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; object-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'"
)
# The frame that shows a run's report, which has its style and pictures inside: what is in the frame inherits this.
REPORT_POLICY = (
    "default-src 'none'; script-src 'self'; connect-src 'self'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data:; frame-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
# What a script or a style carries: no browser shows one as a page, and twenty of them come with the first visit.
PART_HEADERS = {"cross-origin-resource-policy": "same-origin"}
PARTS = ("text/javascript", "text/css")
TYPES = {".js": "text/javascript", ".mjs": "text/javascript", ".json": "application/json", ".svg": "image/svg+xml"}


def page_headers(policy: str = CONTENT_SECURITY_POLICY) -> dict[str, str]:
    """What every answer that a browser shows as a page carries."""
    return {
        "content-security-policy": policy,
        "referrer-policy": "no-referrer",
        "cross-origin-opener-policy": "same-origin",
        **PART_HEADERS,
    }


@dataclass(frozen=True)
class _File:
    """packed: the content as gzip, made once."""

    content: bytes
    packed: bytes
    kind: str
    etag: str


class Pages:
    """faces: paths that show the page itself; which of its faces comes up, its script reads from the path."""

    def __init__(self, folder: Path = WEB, faces: tuple[str, ...] = FACES) -> None:
        self._files = {} if not folder.is_dir() else _read(folder)
        self._faces = faces

    def routes(self) -> list[Route]:
        if "index.html" not in self._files:
            return []
        faces = [Route(face, self._index, methods=["GET"]) for face in self._faces]
        report = [Route(REPORT, self._report, methods=["GET"])] if "report.html" in self._files else []
        return [*faces, *report, Route("/web/{path:path}", self._part, methods=["GET"])]

    async def _index(self, request: Request) -> Response:
        return self._send(request, "index.html")

    async def _report(self, request: Request) -> Response:
        return self._send(request, "report.html", REPORT_POLICY)

    async def _part(self, request: Request) -> Response:
        return self._send(request, request.path_params["path"])

    def _send(self, request: Request, name: str, policy: str = CONTENT_SECURITY_POLICY) -> Response:
        file = self._files.get(name)
        if file is None:
            raise ApiError(404, f"no such file of the page: {name!r:.200}")
        headers = dict(PART_HEADERS) if file.kind in PARTS else page_headers(policy)
        headers |= {"etag": file.etag, "cache-control": "no-cache", "vary": "accept-encoding"}
        if request.headers.get("if-none-match") == file.etag:
            return Response(status_code=304, headers=headers)
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["content-encoding"] = "gzip"
            return Response(file.packed, headers=headers, media_type=file.kind)
        return Response(file.content, headers=headers, media_type=file.kind)


def _read(folder: Path) -> dict[str, _File]:
    """ "shell/boot.js" -> its content."""
    files = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            kind = TYPES.get(path.suffix) or mimetypes.guess_type(path.name)[0] or "application/octet-stream"
            etag = f'"{hashlib.sha256(content).hexdigest()[:12]}"'
            packed = gzip.compress(content, 9, mtime=0)
            files[path.relative_to(folder).as_posix()] = _File(content, packed, kind, etag)
    return files
