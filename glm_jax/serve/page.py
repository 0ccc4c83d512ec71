"""The chat page, and the policy under which a browser runs it."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from importlib import resources

from fastapi.responses import HTMLResponse


def page_response() -> HTMLResponse:
    """The page, with headers that let nothing into it from outside."""
    page, headers = _page()
    return HTMLResponse(page, headers=headers)


@functools.cache
def _page() -> tuple[str, dict[str, str]]:
    page = resources.files("glm_jax.serve").joinpath("page.html").read_text(encoding="utf-8")
    return page, {
        "Content-Security-Policy": content_policy(page),
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cache-Control": "no-cache",
    }


def content_policy(page: str) -> str:
    """A policy under which the page's own script and style run, and nothing else ever does.

    Trusted types without any policy: a browser that knows them refuses to make HTML of a string.
    """

    def hashes(tag: str) -> str:
        found = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = (hashlib.sha256(text.encode()).digest() for text in found)
        return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)

    return (
        f"default-src 'none'; script-src {hashes('script')}; style-src {hashes('style')}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )
