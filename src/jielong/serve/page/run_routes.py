"""/api/runs/…: what the face "Training" asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from jielong.serve.errors import ApiError, bad_request
from jielong.serve.page.bodies import fresh
from jielong.serve.page.runs import Runs, metrics_since, samples, spoken, stage_folder

# The report is one file with its own style and pictures inside, and runs no script.
_REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'"


def run_routes(runs: Runs) -> list[Route]:
    """The runs, the metrics of a stage from a cursor on, samples, and the report."""

    async def listed(request: Request) -> Response:
        return fresh({"runs": await run_in_threadpool(runs.listed)})

    async def metrics(request: Request) -> Response:
        written = request.query_params.get("since", "0")
        if not written.isdecimal() or len(written) > 15:
            raise bad_request(f"since is {written!r:.40}; it must be a cursor that was given before, or 0", "since")
        return fresh(await run_in_threadpool(_metrics, request.path_params["stage"], int(written), found(request)))

    async def told(request: Request) -> Response:
        return fresh({"stages": await run_in_threadpool(samples, found(request))})

    async def said(request: Request) -> Response:
        return fresh({"stages": await run_in_threadpool(spoken, found(request))})

    async def report(request: Request) -> Response:
        try:
            content = await run_in_threadpool((found(request) / "report.html").read_bytes)
        except OSError:
            raise ApiError(404, "this run has no report yet") from None
        headers = {"content-security-policy": _REPORT_POLICY, "cache-control": "no-store"}
        return Response(content, media_type="text/html", headers=headers)

    def found(request: Request) -> Path:
        folder = runs.folder(request.path_params["run"])
        if folder is None:
            raise ApiError(404, "there is no such run; its folder may have been removed")
        return folder

    one = "/api/runs/{run}"
    return [
        Route("/api/runs", listed, methods=["GET"]),
        Route(one + "/metrics/{stage}", metrics, methods=["GET"]),
        Route(one + "/samples", told, methods=["GET"]),
        Route(one + "/spoken", said, methods=["GET"]),
        Route(one + "/report", report, methods=["GET"]),
    ]


def _metrics(stage: str, cursor: int, run: Path) -> dict[str, Any]:
    """`metrics_since` of a stage by its name; nothing where it has not begun, or measures nothing."""
    folder = stage_folder(run, stage)
    nothing = {"cursor": 0, "anew": cursor > 0, "sampled": False, "columns": {}}
    try:
        return nothing if folder is None else metrics_since(folder / "metrics.jsonl", cursor)
    except FileNotFoundError:
        return nothing
    except OSError as error:
        raise ApiError(404, f"the metrics of {stage!r:.60} cannot be read: {error.strerror}") from None
