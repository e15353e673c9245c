"""The review page as an application of its own: without Ray and sign-in, which belong to the surrounding server."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles

from chorus.serving.review.decision_routes import decision_routes
from chorus.serving.review.image_routes import image_routes
from chorus.serving.review.outline_routes import outline_routes
from chorus.serving.review.problems import explain_problems
from chorus.serving.review.run import ReviewedRun
from chorus.serving.review.table_routes import table_routes


def review_app(results: str, *, writable: bool = True, places: bool = False) -> FastAPI:
    """Create the application that shows the results of a run and records decisions.

    It can be mounted at any path that ends with a slash. If the server in front authenticates users, it sets
    ``request.state.reviewer``, and decisions carry that name whatever the page sends; else the name is the one that the
    person gave.

    Parameters
    ----------
    results : the --out of ``chorus predict``, a folder or a URL
    writable : whether decisions are recorded and missing thumbnails are stored
    places : whether messages may contain paths on this machine and URLs of buckets

    Raises
    ------
    RefusedError
        If there are no results.
    OutputError
        If they cannot be read.
    """
    run = ReviewedRun(results, places=places)
    app = FastAPI(title="Chorus review", docs_url=None, redoc_url=None, openapi_url=None)
    explain_problems(app, run)
    app.include_router(table_routes(run, writable=writable))
    app.include_router(image_routes(run, writable=writable))
    app.include_router(decision_routes(run, writable=writable))
    app.include_router(outline_routes(run))
    folder = Path(str(resources.files("chorus.serving.review") / "static"))
    app.mount("/static", _Static(directory=folder), name="static")

    @app.get("/")
    def page() -> Response:
        return FileResponse(folder / "index.html", headers={"Cache-Control": "no-cache"})

    return app


class _Static(StaticFiles):
    """Files of the page; browsers revalidate them each time, so that updates are visible."""

    def file_response(self, *args: object, **kwargs: object) -> Response:
        response = super().file_response(*args, **kwargs)  # type: ignore[arg-type]
        response.headers["Cache-Control"] = "no-cache"
        return response
