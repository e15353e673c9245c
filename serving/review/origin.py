"""Changes are taken from the review page itself, not from pages of other sites in the same browser."""

from __future__ import annotations

from urllib.parse import urlsplit

from fastapi import HTTPException, Request


def require_own_page(request: Request) -> None:
    """Raise HTTPException 403 for a request that a browser sends for a page of another site.

    Browsers say so on every POST, by ``Origin`` or ``Sec-Fetch-Site``; what says neither is no browser.
    """
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site", "same-origin")
    foreign = origin is not None and urlsplit(origin).netloc != request.headers.get("host", "")
    if foreign or site not in ("same-origin", "none"):
        raise HTTPException(403, "decisions are taken from this page only; open it by its own address")
