"""Files that an application hands out, such as a screenshot: fetched from its process piece by piece."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from urllib.parse import quote

from aiohttp import web
from textual_serve._binary_encode import load

from nanochat_tui.web.visitor import Visitor

PIECE = 1 << 16
PIECE_SECONDS = 30.0


@dataclass(slots=True)
class _Offer:
    visitor: Visitor
    key: str
    """What the application calls it."""
    name: str
    pieces: asyncio.Queue[bytes | None] = field(default_factory=asyncio.Queue)


class Downloads:
    """The files on offer, each under a key that cannot be guessed; one is handed out once."""

    def __init__(self) -> None:
        self._offers: dict[str, _Offer] = {}

    def offer(self, visitor: Visitor, message: Mapping[str, object]) -> str:
        """Take note of a file from the driver's message; return the key under which it can be had."""
        key = secrets.token_urlsafe(16)
        name = PurePath(str(message.get("path") or "file")).name
        self._offers[key] = _Offer(visitor, str(message.get("key")), name)
        return key

    def forget(self, visitor: Visitor) -> None:
        """Drop the files of an application that ends."""
        for key in [key for key, offer in self._offers.items() if offer.visitor is visitor]:
            self._offers.pop(key).pieces.put_nowait(None)

    def received(self, packet: bytes) -> None:
        """Take a piece from an application; an empty one is the end."""
        try:
            found = load(packet)
        except Exception:  # a packet that cannot be read leaves the download to its time limit
            return
        match found:
            case ("deliver_chunk", str(key), str() | bytes() as piece):
                data = piece.encode() if isinstance(piece, str) else piece
                for offer in self._offers.values():
                    if offer.key == key:
                        offer.pieces.put_nowait(data or None)
            case _:
                return

    async def answer(self, request: web.Request, headers: Mapping[str, str]) -> web.StreamResponse:
        """Send a file. Raises HTTPNotFound for a key that is not on offer."""
        key = request.match_info["key"]
        offer = self._offers.get(key)
        if offer is None:
            raise web.HTTPNotFound
        response = web.StreamResponse(headers=dict(headers))
        # never inline: the file's contents would run as a page of this origin
        response.headers["Content-Type"] = "application/octet-stream"
        response.headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(offer.name, safe='')}"
        await response.prepare(request)
        try:
            while True:
                await offer.visitor.tell(type="deliver_chunk_request", key=offer.key, size=PIECE, name=None)
                piece = await asyncio.wait_for(offer.pieces.get(), PIECE_SECONDS)
                if piece is None:
                    break
                await response.write(piece)
            await response.write_eof()
        finally:
            self._offers.pop(key, None)
        return response
