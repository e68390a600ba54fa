"""Images, audio and searches on a money budget: reserved before they are made, by the most expensive way of billing, and booked."""

from __future__ import annotations

import io
import wave
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.acceptance.serving import Served, serving, words
from tests.fake_provider import FakeProvider, Received
from tests.farebox_process import tagged

pytestmark = pytest.mark.xdist_group("acceptance-media")

IMAGE: dict[str, Any] = {"mode": "image_generation", "input_cost_per_token": 5e-6, "output_cost_per_image_token": 4e-5}
PRICES: dict[str, dict[str, Any]] = {
    "image": IMAGE,
    "cheap-image": {"mode": "image_generation", "output_cost_per_image": 0.01},
    "expensive-image": {"mode": "image_generation", "output_cost_per_image": 0.04},
    "voice": {"mode": "audio_speech", "input_cost_per_character": 1e-5},
    "token-voice": {
        "mode": "audio_speech",
        "input_cost_per_token": 6e-7,
        "output_cost_per_token": 1e-5,
        "output_cost_per_audio_token": 1.2e-5,
        "output_cost_per_second": 2.5e-4,
    },
    "ear": {"mode": "audio_transcription", "input_cost_per_second": 1e-4},
    "order": {"mode": "rerank", "input_cost_per_query": 1e-3},
    "token-ear": {"mode": "audio_transcription", "input_cost_per_token": 1e-6, "output_cost_per_token": 1e-5},
    "talker": {
        "input_cost_per_token": 2.5e-6,
        "output_cost_per_token": 1e-5,
        "input_cost_per_audio_token": 4e-5,
        "output_cost_per_audio_token": 8e-5,
        "max_output_tokens": 4096,
    },
}
USD = 0.05


def models(provider: FakeProvider) -> list[dict[str, Any]]:
    def entry(name: str, prices: dict[str, Any]) -> dict[str, Any]:
        vendor = "hosted_vllm" if name == "order" else "openai"
        params = {"model": f"{vendor}/{name}", "api_base": provider.openai_url, "api_key": "upstream-key"}
        return {"model_name": name, "litellm_params": params, "model_info": prices}

    return [entry(name, prices) for name, prices in PRICES.items()]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(
        tmp_path_factory.mktemp("media"),
        models=models,
        budgets=[{"scope": "run", "match": "money", "usd": USD}],
        router_settings={"num_retries": 0, "fallbacks": [{"cheap-image": ["expensive-image"]}]},
    ) as running:
        yield running


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.gateway.url + "/v1", api_key="local", max_retries=0) as opened:
        yield opened


def budgeted(run: str) -> dict[str, str]:
    return tagged("money", run, "draw")


def settled(served: Served, run: str) -> float:
    shown: dict[str, Any] = served.gateway.get(f"/api/runs/{run}").json()["cost_usd"]
    assert (shown["reserved"], shown["overrun"]) == (0, 0)
    return float(shown["settled"])


def wav(seconds: float) -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as wav_file:
        wav_file.setparams((1, 2, 8_000, 0, "NONE", ""))
        wav_file.writeframes(b"\x00\x00" * int(8_000 * seconds))
    return buffer.getvalue()


def is_for(model: str) -> Any:
    def holds(received: Received) -> bool:
        return received.body.get("model") == model

    return holds


def test_image_is_charged_by_its_reported_tokens(served: Served, client: openai.OpenAI) -> None:
    client.images.generate(
        model="image", prompt="a tram", size="1024x1024", quality="low", extra_headers=budgeted("m-image")
    )
    assert settled(served, "m-image") == pytest.approx(3 * 5e-6 + 7 * 4e-5)


def test_image_without_reported_usage_is_charged_at_its_reservation(served: Served, client: openai.OpenAI) -> None:
    served.provider.script(usage="missing")
    client.images.generate(
        model="image", prompt="a tram", size="1024x1024", quality="low", extra_headers=budgeted("m-silent")
    )
    assert settled(served, "m-silent") == pytest.approx(272 * 4e-5)
    served.provider.script(usage="missing")
    client.images.generate(model="cheap-image", prompt="a tram", extra_headers=budgeted("m-plain"))
    assert settled(served, "m-plain") == pytest.approx(0.01)


def test_images_whose_worst_case_exceeds_the_budget_are_refused(served: Served, client: openai.OpenAI) -> None:
    """Two of medium quality are 2,112 tokens, 0.084 USD at 40 USD a million."""
    with pytest.raises(openai.APIStatusError) as refused:
        client.images.generate(
            model="image",
            prompt="a tram",
            n=2,
            size="1024x1024",
            quality="medium",
            extra_headers=budgeted("m-images"),
        )
    assert refused.value.status_code == 402
    assert isinstance(refused.value.body, dict)
    assert 0.084 < refused.value.body["metadata"]["needed"] < 0.09
    assert served.seen() == 0


def test_more_expensive_image_fallback_is_used_only_if_its_price_fits(served: Served, client: openai.OpenAI) -> None:
    served.provider.script(status=503, times=None, when=is_for("cheap-image"))
    with pytest.raises(openai.InternalServerError):
        client.images.generate(model="cheap-image", prompt="a tram", n=2, extra_headers=budgeted("m-expensive"))
    assert [received.body["model"] for received in served.provider.requests] == ["cheap-image"]
    assert settled(served, "m-expensive") == 0
    client.images.generate(model="cheap-image", prompt="a tram", extra_headers=budgeted("m-expensive"))
    assert served.last.body["model"] == "expensive-image"
    assert settled(served, "m-expensive") == pytest.approx(0.04)


def test_speech_and_transcription_are_charged_by_characters_seconds_or_tokens(
    served: Served, client: openai.OpenAI
) -> None:
    spoken = client.audio.speech.create(
        model="voice", voice="alloy", input="x" * 100, extra_headers=budgeted("m-voice")
    )
    assert spoken.content.startswith(b"ID3")
    assert settled(served, "m-voice") == pytest.approx(0.001)
    transcript = client.audio.transcriptions.create(
        model="ear", file=("a.wav", wav(30.0)), extra_headers=budgeted("m-ear")
    )
    assert transcript.text == "the time of people"
    assert settled(served, "m-ear") == pytest.approx(0.003)
    client.audio.transcriptions.create(
        model="token-ear", file=("a.wav", wav(10.0)), extra_headers=budgeted("m-token-ear")
    )
    assert settled(served, "m-token-ear") == pytest.approx(200 * 1e-5), "its answer reports neither tokens nor seconds"
    with pytest.raises(openai.APIStatusError, match="needs"):
        client.audio.transcriptions.create(model="ear", file=("a.wav", wav(501.0)), extra_headers=budgeted("m-long"))


def test_speech_is_charged_by_its_input_tokens_and_audio_seconds(served: Served, client: openai.OpenAI) -> None:
    for run in (budgeted("m-aloud"), tagged("unlimited", "m-aloud-free")):
        client.audio.speech.create(
            model="token-voice", voice="alloy", input=words(100), response_format="pcm", extra_headers=run
        )
        shown = served.gateway.get(f"/api/runs/{run['x-workflow-run-id']}").json()
        assert shown["tokens"]["settled"] == 100
        # 503 bytes of sound are 11 ms.
        assert shown["cost_usd"]["settled"] == pytest.approx(100 * 6e-7 + 0.011 * 2.5e-4)


@pytest.mark.parametrize(("modalities", "most"), [(["text", "audio"], 0.05 / 8e-5), (["text"], 4096)])
def test_output_that_may_be_audio_is_reserved_at_the_audio_price(
    served: Served, modalities: list[str], most: float
) -> None:
    body = {"model": "talker", "messages": [{"role": "user", "content": "hi"}], "modalities": modalities}
    reply = served.gateway.request("POST", "/v1/chat/completions", body, budgeted(f"m-talk-{len(modalities)}"))
    assert reply.status == 200, reply.body
    assert most * 0.95 < served.last.body.get("max_tokens", 4096) <= most


def test_rerank_is_charged_by_query(served: Served) -> None:
    body = {"model": "order", "query": "which", "documents": ["a", "b"]}
    reply = served.gateway.request("POST", "/v1/rerank", body, budgeted("m-order"))
    assert reply.status == 200, reply.body
    assert settled(served, "m-order") == pytest.approx(0.001)
