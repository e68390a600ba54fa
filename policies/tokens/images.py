"""The tokens of an image, by its size in pixels.

Sources: OpenAI's "Images and vision" guide (tiles, patches and their multipliers) checked against usage that its API
reported, Anthropic's "Vision" page (width × height ÷ 750) and Google's token page (258 a tile). Sizes are read from the first
bytes of inline images; images behind a URL are never fetched, so their family's maximum is reserved.
"""

import binascii
from typing import NamedTuple, Protocol

from policies.values import value_class

_TILE_PX, _LONG_SIDE_PX, _SHORT_SIDE_PX, _PATCH_PX = 512, 2048, 768, 32
_HEADER_BYTES_MAX = 262_144  # the size in a JPEG follows its metadata, which seldom exceeds 64 KB


class Size(NamedTuple):
    width_px: int
    height_px: int


class ImageRule(Protocol):
    """The tokens of an image of known size, and the maximum for any image."""

    def tokens(self, size: Size, detail: str) -> int: ...
    def tokens_max(self, detail: str) -> int: ...


@value_class
class ByTile:
    """GPT-4o's rule: fit into 2048², shrink the short side to 768, then `base` plus `per_tile` for each 512-px tile."""

    base: int
    per_tile: int

    def tokens(self, size: Size, detail: str) -> int:
        if detail == "low":
            return self.base
        shrink = min(1.0, _LONG_SIDE_PX / max(size), _SHORT_SIDE_PX / min(size))
        tiles = _ceil_div(round(size.width_px * shrink), _TILE_PX) * _ceil_div(round(size.height_px * shrink), _TILE_PX)
        return self.base + self.per_tile * tiles

    def tokens_max(self, detail: str) -> int:
        return self.tokens(Size(_LONG_SIDE_PX, _SHORT_SIDE_PX), detail)


@value_class
class ByPatch:
    """The mini models' rule: 32-px patches, at most `patches_max`, times a multiplier."""

    multiplier_percent: int
    patches_max: int = 1536

    def tokens(self, size: Size, detail: str) -> int:
        patches = _ceil_div(size.width_px, _PATCH_PX) * _ceil_div(size.height_px, _PATCH_PX)
        return _ceil_div(min(patches, self.patches_max) * self.multiplier_percent, 100)

    def tokens_max(self, detail: str) -> int:
        return _ceil_div(self.patches_max * self.multiplier_percent, 100)


@value_class
class ByArea:
    """Anthropic's rule: one token per `px_per_token` pixels; larger images are scaled down to `tokens_limit` tokens."""

    px_per_token: int
    tokens_limit: int

    def tokens(self, size: Size, detail: str) -> int:
        return min(self.tokens_limit, _ceil_div(size.width_px * size.height_px, self.px_per_token))

    def tokens_max(self, detail: str) -> int:
        return self.tokens_limit


def image_size(url_or_base64: str) -> Size | None:
    """The pixels of an inline PNG, JPEG, GIF or WebP; None for a URL or another format.

    Decodes at most 256 KB, so the cost does not grow with the image.
    """
    start = url_or_base64.find(",", 0, 256) + 1 if url_or_base64.startswith("data:") else 0
    for prefix_bytes in (66, 4_098, _HEADER_BYTES_MAX):
        size = _size_from_header(_decoded_head(url_or_base64, start, prefix_bytes))
        if size is not None and min(size) > 0:
            return size
    return None


def decoded_head(base64_text: str, bytes_max: int) -> bytes:
    """The first bytes of a data URL or of bare base64; empty for anything else."""
    start = base64_text.find(",", 0, 256) + 1 if base64_text.startswith("data:") else 0
    return _decoded_head(base64_text, start, bytes_max)


def _decoded_head(text: str, start: int, bytes_max: int) -> bytes:
    encoded = text[start : start + bytes_max // 3 * 4]
    try:
        return binascii.a2b_base64(encoded[: len(encoded) // 4 * 4])
    except (binascii.Error, ValueError):
        return b""


def _size_from_header(head: bytes) -> Size | None:
    if head.startswith(b"\x89PNG\r\n\x1a\n") and len(head) >= 24:
        return Size(int.from_bytes(head[16:20]), int.from_bytes(head[20:24]))
    if head.startswith((b"GIF87a", b"GIF89a")) and len(head) >= 10:
        return Size(int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little"))
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return _webp_size(head)
    if head.startswith(b"\xff\xd8"):
        return _jpeg_size(head)
    return None


def _webp_size(head: bytes) -> Size | None:
    kind = head[12:16]
    if kind == b"VP8X" and len(head) >= 30:
        return Size(int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1)
    if kind == b"VP8L" and len(head) >= 25:
        bits = int.from_bytes(head[21:25], "little")
        return Size((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1)
    if kind == b"VP8 " and len(head) >= 30:
        return Size(int.from_bytes(head[26:28], "little") & 0x3FFF, int.from_bytes(head[28:30], "little") & 0x3FFF)
    return None


def _jpeg_size(head: bytes) -> Size | None:
    offset = 2
    while offset + 9 < len(head) and head[offset] == 0xFF:
        marker, length = head[offset + 1], int.from_bytes(head[offset + 2 : offset + 4])
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # a frame header; those three are tables
            return Size(int.from_bytes(head[offset + 7 : offset + 9]), int.from_bytes(head[offset + 5 : offset + 7]))
        offset += 2 + max(length, 2)
    return None


def _ceil_div(number: int, divisor: int) -> int:
    return -(-number // divisor)
