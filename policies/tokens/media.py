"""Message parts other than text: images, documents, audio. Each has an expected cost and a spare above it."""

import re
from collections.abc import Mapping
from typing import Any

from policies.tokens.counting import Counting
from policies.tokens.images import decoded_head, image_size
from policies.tokens.json_text import as_object, as_text
from policies.tokens.prompt import Cost

_PAGE_TOKENS = 250  # measured on one-page PDFs: 220; the page's text is extra, and included in the maximum
_PAGE_TOKENS_MAX = 2_000  # a dense page's text (about 900) and its picture in four tiles
_PDF_BYTES_PER_PAGE = 8_000  # assumed if page objects are compressed; scans are ten times larger, so it is a bound
_PDF_SCANNED_BYTES = 262_144  # pages are counted in this part and extrapolated, which takes less than 1 ms
_UNKNOWN_FILE_PAGES_MAX = 4  # a file given by id or URL: nothing is known about it
_PAGE_OBJECT = re.compile(rb"/Type\s{0,4}/Page(?![a-zA-Z])")

_AUDIO_TOKENS_PER_1000_S = 10_500  # measured: ~10.5 tokens a second
_AUDIO_BYTES_PER_S = 16_000  # 128 kbit/s, a typical MP3; also 16-bit mono at 8 kHz
# Formats with samples of one size: integers, floats, A-law, µ-law, and those with an extended header.
_WAV_PLAIN = (1, 3, 6, 7, 0xFFFE)
_AUDIO_BYTES_PER_S_MIN = 4_000  # 32 kbit/s, the lowest usual rate for speech


def image_cost(source: str, detail: Any, counting: Counting) -> Cost:
    """An image as a data URL or bare base64; for a URL, a mid-size image with the rest of the maximum as spare."""
    detail_level = detail if isinstance(detail, str) else "auto"
    rule, tokens_max = counting.images, counting.images.tokens_max(detail_level)
    size = image_size(source)
    if size is not None:
        return Cost(media=rule.tokens(size, detail_level))
    return Cost(media=tokens_max // 2, spare=tokens_max - tokens_max // 2)


def document_cost(data: str | None) -> Cost:
    """A PDF as a data URL or bare base64; None for one given by id or URL."""
    if not data:
        return _pages_cost(1, _UNKNOWN_FILE_PAGES_MAX)
    size_bytes = len(data) * 3 // 4
    scanned = decoded_head(data, _PDF_SCANNED_BYTES)
    page_count = len(_PAGE_OBJECT.findall(scanned))
    if not page_count:
        return _pages_cost(1, max(1, size_bytes // _PDF_BYTES_PER_PAGE))
    pages = max(page_count, page_count * size_bytes // max(1, len(scanned)))
    return _pages_cost(pages, pages)


def audio_cost(data: str) -> Cost:
    """Base64 audio: WAV by the sample format in its header, other formats at 128 kbit/s, at worst 32 kbit/s."""
    size_bytes = len(data) * 3 // 4
    head = decoded_head(data, 48)
    rate = wav_bytes_per_second(head[20:36]) if head[:4] == b"RIFF" and head[12:16] == b"fmt " else 0
    if rate:
        return Cost(media=_audio_tokens(size_bytes, rate))
    tokens_max = _audio_tokens(size_bytes, _AUDIO_BYTES_PER_S_MIN)
    tokens = _audio_tokens(size_bytes, _AUDIO_BYTES_PER_S)
    return Cost(media=tokens, spare=tokens_max - tokens)


def wav_bytes_per_second(form: bytes) -> int:
    """From the first 16 bytes of a `fmt ` chunk; 0 if samples are not of one size. The header's own byte rate is ignored,
    because players ignore it, too."""
    kind, channels, hertz = (int.from_bytes(form[start:end], "little") for start, end in ((0, 2), (2, 4), (4, 8)))
    return hertz * channels * -(-int.from_bytes(form[14:16], "little") // 8) if kind in _WAV_PLAIN else 0


def openai_media_cost(kind: str, part: Mapping[str, Any], counting: Counting) -> Cost | None:
    """The cost of a chat or Responses part that is media; None for unknown kinds."""
    if kind in ("image_url", "input_image", "computer_screenshot"):
        image = part.get("image_url")
        inner = as_object(image)
        url = as_text(inner.get("url") if inner else image)
        return image_cost(url, inner.get("detail") or part.get("detail"), counting)
    if kind == "file" or kind == "input_file":
        return document_cost(as_text(as_object(part.get("file") or part).get("file_data")) or None)
    if kind == "document_url":
        return document_cost(None)
    if kind == "input_audio":
        return audio_cost(as_text(as_object(part.get("input_audio")).get("data")))
    return None


def _pages_cost(pages: int, pages_max: int) -> Cost:
    expected = pages * _PAGE_TOKENS
    return Cost(media=expected, spare=max(0, pages_max * _PAGE_TOKENS_MAX - expected))


def _audio_tokens(size_bytes: int, bytes_per_s: int) -> int:
    return -(-size_bytes * _AUDIO_TOKENS_PER_1000_S // (1000 * bytes_per_s))
