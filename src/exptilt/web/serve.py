"""Serves the page: to this machine alone unless told otherwise, with bounds on what a client may ask for."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import resources
from urllib.parse import urlsplit

import gradio as gr
from gradio import themes
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from exptilt.report.theme import THEMES
from exptilt.web.address import LOOPBACK, unusable
from exptilt.web.catalogue import Catalogue
from exptilt.web.page import make_page

# A request names a model and seven values.
_MOST_BYTES = 1 << 16
# No font is fetched, from here or from elsewhere.
_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "sans-serif")
_MONO = ("ui-monospace", "Menlo", "Consolas", "monospace")


def launch(catalogue: Catalogue, *, host: str = LOOPBACK[0], port: int | None = None) -> gr.Blocks:
    """Serve the page from threads of this process until its ``close()``; its ``local_url`` says where.

    No request leaves the machine, neither from the server nor from the page.

    Args:
        catalogue: The models to choose from.
        host: Address to listen on.
        port: Port to listen on; the first free one from 7860 on unless given.

    Raises:
        InputError: The address or port cannot be listened on.
    """
    middleware = [Middleware(RequestBodyLimitMiddleware, max_body_size=_MOST_BYTES)]
    if host in LOOPBACK:
        # A page of another site must not reach this one by a name that it lets point here, nor set its chains going.
        middleware.append(Middleware(TrustedHostMiddleware, allowed_hosts=[*LOOPBACK]))
        middleware.append(Middleware(_SameOrigin))
    page = make_page(catalogue)
    try:
        page.launch(
            server_name=host,
            server_port=port,
            app_kwargs={"middleware": middleware},
            theme=_theme(),
            css=_resource("page.css"),
            js=_resource("page.js"),
            max_file_size=1,
            state_session_capacity=200,
            footer_links=[],
            run_history=False,
            share=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            enable_monitoring=False,
            quiet=True,
            prevent_thread_lock=True,
        )
    except OSError as error:
        raise unusable(host, port, error) from None
    return page


def serve(catalogue: Catalogue, *, host: str, port: int | None, say: Callable[[str], None]) -> None:
    """As :func:`launch`, until it is interrupted.

    Args:
        catalogue: The models to choose from.
        host: Address to listen on.
        port: Port to listen on, or None.
        say: Gets the address of the page.

    Raises:
        InputError: The address or port cannot be listened on.
    """
    page = launch(catalogue, host=host, port=port)
    reach = "" if host in LOOPBACK else "; every machine that reaches this one can use it"
    try:
        say(f"the page is {page.local_url} (Ctrl-C stops it){reach}")
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        page.close(verbose=False)


class _SameOrigin:
    """Refuses what a page of another site asks for: a browser names that page's site in ``Origin``."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 403."""
        headers = Headers(scope=scope) if scope["type"] in ("http", "websocket") else {}
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != headers.get("host"):
            await PlainTextResponse("a page of another site may not use this one", 403)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _theme() -> themes.Base:
    # The theme's own quiet colour is too faint to read on white.
    quiet = {"body_text_color_subdued": THEMES["light"].muted, "body_text_color_subdued_dark": THEMES["dark"].muted}
    return themes.Default(font=_FONTS, font_mono=_MONO).set(**quiet)


def _resource(name: str) -> str:
    return resources.files("exptilt.web").joinpath(name).read_text(encoding="utf-8")
