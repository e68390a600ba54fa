"""Sizes read from the first bytes of images, and what a size costs each family."""

import base64
import struct

import pytest

from policies.tokens import count_responses, counting_for
from policies.tokens.images import Size, image_size
from policies.tokens.media import audio_cost, document_cost, image_cost
from policies.tokens.prompt import Cost

PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIB", 13, b"IHDR", 640, 480, 8)
GIF = b"GIF89a" + struct.pack("<HH", 320, 200) + bytes(8)
JPEG = (
    b"\xff\xd8\xff\xe1"
    + struct.pack(">H", 3_000)
    + bytes(2_998)
    + b"\xff\xc0\x00\x11\x08"
    + struct.pack(">HH", 90, 120)
)
WEBP_X = b"RIFF0000WEBPVP8X" + bytes(8) + (799).to_bytes(3, "little") + (599).to_bytes(3, "little")
WEBP_L = b"RIFF0000WEBPVP8L" + bytes(4) + b"/" + (99 | 49 << 14).to_bytes(4, "little") + bytes(8)
WEBP = b"RIFF0000WEBPVP8 " + bytes(10) + struct.pack("<HH", 50, 60)


def data_url(raw: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64," + base64.b64encode(raw + bytes(16)).decode()


@pytest.mark.parametrize("url", [data_url(PNG), "https://example.org/page.png"])
def test_computer_screenshot_costs_the_same_as_an_input_image(url: str) -> None:
    def counted(item: str, output: object) -> int:
        items = [{"type": item, "call_id": "c", "output": output}]
        estimate = count_responses({"input": items}, counting_for("gpt-4o", "openai"), len)
        return estimate.reserve_tokens

    alone = counted("computer_call_output", {"type": "computer_screenshot", "image_url": url})
    assert alone == counted("function_call_output", [{"type": "input_image", "image_url": url}])


@pytest.mark.parametrize(
    ("raw", "size"),
    [
        (PNG, Size(640, 480)),
        (GIF, Size(320, 200)),
        (JPEG, Size(120, 90)),
        (WEBP_X, Size(800, 600)),
        (WEBP_L, Size(100, 50)),
        (WEBP, Size(50, 60)),
        (b"BM not supported", None),
        (PNG[:16] + bytes(8), None),
        (b"", None),
    ],
)
def test_size_of_an_inline_image_is_read_from_its_header(raw: bytes, size: Size | None) -> None:
    assert image_size(data_url(raw)) == size
    assert image_size(base64.b64encode(raw + bytes(16)).decode()) == size


@pytest.mark.parametrize(
    "source", ["https://example.com/a.png", "", "data:", "data:image/png;base64,%%%", "\ud800" * 80]
)
def test_source_that_is_not_an_inline_image_has_no_size(source: str) -> None:
    assert image_size(source) is None


@pytest.mark.parametrize(
    ("model", "size", "detail", "tokens"),
    [
        ("gpt-4o", Size(1, 1), "auto", 255),
        ("gpt-4o", Size(1126, 488), "high", 85 + 3 * 170),
        ("gpt-4o", Size(3008, 2000), "high", 85 + 6 * 170),
        ("gpt-4o", Size(4096, 100), "low", 85),
        ("gpt-4o-mini", Size(1, 1), "auto", 8_500),
        ("gpt-5", Size(1024, 1024), "high", 70 + 4 * 140),
        ("gpt-4.1-nano", Size(540, 360), "auto", 502),
        ("gpt-5-mini", Size(10_000, 10_000), "auto", 1_844),
        ("claude-sonnet-4-5", Size(750, 750), "auto", 750),
        ("claude-sonnet-4-5", Size(8_000, 8_000), "auto", 1_640),
    ],
)
def test_image_tokens_depend_on_model_size_and_detail(model: str, size: Size, detail: str, tokens: int) -> None:
    assert counting_for(model).images.tokens(size, detail) == tokens


@pytest.mark.parametrize("model", ["gpt-4o", "gpt-4o-mini", "gpt-5", "o4-mini", "claude-opus-5", "gemini-2.5-pro", "x"])
def test_image_given_by_url_is_reserved_at_the_maximum(model: str) -> None:
    counting = counting_for(model)
    cost = image_cost("https://example.com/a.png", None, counting)
    assert cost.media + cost.spare == counting.images.tokens_max("auto")
    for size in (Size(1, 1), Size(800, 600), Size(2048, 768), Size(768, 2048), Size(5_000, 5_000)):
        assert counting.images.tokens(size, "auto") <= cost.media + cost.spare


def test_document_cost_depends_on_its_pages() -> None:
    three_pages = data_url(b"%PDF-1.4 /Type /Pages /Type /Page /Type/Page\n/Type /Page", "application/pdf")
    assert document_cost(three_pages).media == 750
    assert document_cost(data_url(bytes(80_000), "application/pdf")).spare == 10 * 2_000 - 250
    assert document_cost(None).spare > 0


def test_audio_cost_depends_on_its_duration() -> None:
    for said_bytes_per_second in (32_000, 2**31):
        head = struct.pack(
            "<4sI4s4sIHHIIHH", b"RIFF", 0, b"WAVE", b"fmt ", 16, 1, 1, 16_000, said_bytes_per_second, 2, 16
        )
        assert audio_cost(base64.b64encode(head + bytes(64_000)).decode()) == Cost(media=22)
    mp3 = audio_cost("A" * 71_808)
    assert mp3.media < 50 < mp3.media + mp3.spare
