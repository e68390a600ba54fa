"""Style sheets and scripts, read once from the package and served from memory, each named with a hash of its content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".woff2": "font/woff2",
}
_CACHE_FOREVER: Final = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class StaticFile:
    content: bytes
    media_type: str
    version: str


class StaticFiles:
    def __init__(self) -> None:
        folder = files("gateway.admin").joinpath("static")
        self._files = {
            entry.name: _static_file(entry.name, entry.read_bytes())
            for entry in folder.iterdir()
            if "." + entry.name.rpartition(".")[2] in _TYPES
        }

    def path(self, name: str) -> str:
        """The address of a file, which changes with its content. Raises KeyError for an unknown file."""
        return f"/admin/static/{name}?v={self._files[name].version}"

    async def serve(self, request: Request) -> Response:
        file = self._files.get(request.path_params["name"])
        if file is None:
            return Response("There is no such file.", 404, media_type="text/plain")
        is_versioned = request.query_params.get("v") == file.version
        headers = {"cache-control": _CACHE_FOREVER if is_versioned else "no-cache", "x-content-type-options": "nosniff"}
        return Response(file.content, headers=headers, media_type=file.media_type)


def _static_file(name: str, content: bytes) -> StaticFile:
    media_type = _TYPES["." + name.rpartition(".")[2]]
    return StaticFile(content, media_type, hashlib.sha256(content).hexdigest()[:16])
