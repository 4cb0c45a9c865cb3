"""Keys and proxies of remote servers: where they come from, and that neither is ever shown."""

from __future__ import annotations

import os
from urllib.parse import urlsplit

from nanochat_tui.errors import UserError
from nanochat_tui.hosts import is_loopback
from nanochat_tui.text import display_safe

_PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY")


def api_key(url: str) -> str | None:
    """Return the key for a server: from NANOCHAT_API_KEY, for OpenAI itself OPENAI_API_KEY, or the system's keyring.

    The last is asked for service `nanochat-tui` and the host as user, if the package `keyring` is installed.
    """
    host = urlsplit(url).hostname or ""
    if key := os.environ.get("NANOCHAT_API_KEY", "").strip():
        return key
    own = (os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com").rstrip("/").removesuffix("/v1")
    if (key := os.environ.get("OPENAI_API_KEY", "").strip()) and own == url:  # no other server's business
        return key
    try:
        import keyring

        found = keyring.get_password("nanochat-tui", host)
        return found if isinstance(found, str) else None
    except Exception:  # not installed, locked, or no keyring on this system: then there is no key
        return None


def sendable_key(key: str) -> str:
    """Return a key as a header can hold it, without the line ends that files add.

    Raises UserError, which does not repeat it, for what is no key.
    """
    key = key.strip()
    if not (key.isascii() and key.isprintable()) or any(c.isspace() for c in key):
        raise UserError(
            "The key holds a character that no key has (a blank, a line break or a letter beyond ASCII); "
            "set NANOCHAT_API_KEY again, to the key alone."
        )
    return key


def key_warning(url: str, key: str | None) -> str | None:
    """Return what is wrong with sending a key to `url`: over plain http, other than to this machine, anyone on the way
    can read it. None if nothing is.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    if not key or parts.scheme != "http" or is_loopback(host):
        return None
    return (
        f"The key is sent to {display_safe(host, 100)} unencrypted, and every machine on the way can read it; "
        "use an https address or a tunnel (ssh -L)."
    )


def proxy_problem() -> str:
    """Return what to do about a proxy of the environment that cannot be used; it names the variable, not its value."""
    for name in (spelled for upper in _PROXIES for spelled in (upper, upper.lower())):
        value = os.environ.get(name, "")
        scheme = value.partition("://")[0].lower() if "://" in value else ""
        if scheme in ("socks5", "socks5h") and not _has_socks():
            return (
                f"{name} names a SOCKS proxy, which needs one more package; install it with: "
                "pip install 'nanochat-tui[socks]'"
            )
        if scheme not in ("", "http", "https", "socks5", "socks5h"):
            return f"{name} names a proxy of kind {display_safe(scheme, 20)}; use http, https, socks5 or unset it."
    return "A proxy of the environment has no usable address; check HTTP_PROXY, HTTPS_PROXY and ALL_PROXY."


def _has_socks() -> bool:
    import importlib.util

    return importlib.util.find_spec("socksio") is not None
