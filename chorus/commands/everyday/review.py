"""``chorus review``."""

from __future__ import annotations

import socket
from typing import Annotated

import typer
from rich.console import Console

from chorus.pipeline.errors import RefusedError

_HOST = "127.0.0.1"


def review(
    out: Annotated[str, typer.Argument(help="Results of `chorus predict`.")],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Of this machine; 0 takes one that is free.")] = 8080,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = True,
) -> None:
    """Look at results in the browser, the most uncertain first, and decide what of them can be used.

    A gallery in any order, a viewer for images of any size with maps and labels over them, plates, and scores with
    thresholds to try. Accept, reject and correct-later are kept in OUT/review, also of several reviewers at once; see
    `chorus export annotation --decided correct-later`. Served to this machine only; Ctrl-C ends it.

    **Examples**

    `chorus review results/`

    `chorus review gs://bucket/results --port 9000 --no-open`
    """
    import uvicorn
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    from chorus.serving.review.app import review_app

    app = review_app(out, places=True)
    # A page elsewhere whose name was pointed at this machine would be sent on to us with its own name.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[_HOST, "localhost"])
    listening = _listen(port)
    url = f"http://{_HOST}:{listening.getsockname()[1]}/"
    console = Console()
    console.print(f"review   {url}  (Ctrl-C ends it)", highlight=False, soft_wrap=True)
    if open_page:
        typer.launch(url)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3))
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        console.print("ended", highlight=False)


def _listen(port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((_HOST, port))
    except OSError as error:
        listening.close()
        raise RefusedError(
            f"--port {port}: cannot be taken ({error.strerror}); give another one, or 0 for any that is free"
        ) from error
    return listening
