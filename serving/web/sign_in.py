"""Sign-in of a person to the review page: a form takes the token once, and the browser keeps it in a cookie.

The cookie is sent only to ``/review``, no script can read it (HttpOnly), and no request from another site's page
carries it (SameSite=Strict). It ends with the browser session, is valid as long as the token is, and works with any
process of the server.
"""

from __future__ import annotations

from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from fastapi import FastAPI, Request
from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, RedirectResponse, Response

from chorus.serving.contract.problems import GUARDS, RequestError
from chorus.serving.web.tokens import Gatekeeper

REVIEW = "/review"
SIGN_IN, SIGN_OUT = f"{REVIEW}/sign-in", f"{REVIEW}/sign-out"
_COOKIE = "chorus-token"
# Maximum size of the form: a token, with room for characters pasted around it.
_MOST_BYTES = 4096
_HEADERS = GUARDS | {
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "same-origin",  # otherwise browsers do not tell from which site a form comes
}
# Without `action` the form is sent to the same address, so that the fragment of the URL (after #) is kept.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Sign in · Chorus review</title>
<link rel="icon" href="static/icon.svg" type="image/svg+xml">
<link rel="stylesheet" href="static/review.css">
<script src="static/js/theme.js"></script>
</head>
<body>
<main class="sign-in">
<h1>Chorus review</h1>
<form method="post">
<label>Token <input type="password" name="token" required autofocus autocomplete="current-password"
  aria-describedby="about{described}"></label>
{said}<button class="main" type="submit">Sign in</button>
<p id="about" class="soft">Whoever runs this server makes tokens with <code>chorus serve token</code>. Decisions
  carry the name of yours.</p>
</form>
</main>
</body>
</html>
"""
_WRONG = '<p id="wrong" class="wrong" role="alert">This server does not know that token.</p>\n'


def token_in(headers: Headers) -> str | None:
    """Return the token of a signed-in browser, valid or not; None if there is none."""
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(_COOKIE)
    except CookieError:
        return None
    return cookie.value if cookie is not None else None


def add_sign_in(api: FastAPI, gatekeeper: Gatekeeper) -> None:
    """Add the form at `SIGN_IN`, and sign-out at `SIGN_OUT`."""

    @api.get(SIGN_IN, include_in_schema=False)
    async def form() -> Response:
        return RedirectResponse(f"{REVIEW}/", 303) if gatekeeper.open else _page()

    @api.post(SIGN_IN, include_in_schema=False)
    async def sign_in(request: Request) -> Response:
        token = await _token(request)
        try:
            gatekeeper.check(f"Bearer {token}")
        except RequestError as error:
            if error.status != 401:
                raise
            return _page(wrong=True)
        answer = RedirectResponse(f"{REVIEW}/", 303)
        answer.set_cookie(_COOKIE, token, path=REVIEW, secure=_is_secure(request), httponly=True, samesite="strict")
        return answer

    @api.post(SIGN_OUT, include_in_schema=False)
    async def sign_out(request: Request) -> Response:
        answer = Response(status_code=204)
        answer.delete_cookie(_COOKIE, path=REVIEW, secure=_is_secure(request), httponly=True, samesite="strict")
        return answer


def _page(*, wrong: bool = False) -> Response:
    content = _PAGE.format(described=" wrong" if wrong else "", said=_WRONG if wrong else "")
    return HTMLResponse(content, 401 if wrong else 200, _HEADERS)


async def _token(request: Request) -> str:
    """Read the token from the form; raise RequestError 413 if the form is too long for a token."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > _MOST_BYTES:
            raise RequestError(413, "that is longer than any token")
    return parse_qs(body.decode(errors="replace")).get("token", [""])[0].strip()


def _is_secure(request: Request) -> bool:
    """Return whether the browser uses TLS, which ends at the ingress in front."""
    return request.headers.get("x-forwarded-proto", request.url.scheme) == "https"
