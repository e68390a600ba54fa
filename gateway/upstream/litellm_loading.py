"""Importing LiteLLM: late, once, in a thread, and quiet.

The import takes seconds and 170 MB, so a gateway whose models all take the direct lane never pays for it.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from contextvars import ContextVar
from types import ModuleType
from typing import Any, Final

from gateway.upstream import litellm_bookkeeping, litellm_connections, litellm_plain_requests, litellm_stand_ins
from gateway.upstream.litellm_errors import CUT

# No price map from the network, no `.env` read from the working directory, and no fetching of pictures that a client
# names: the gateway calls the deployment's origin and nothing else. The user's own values win.
_ENVIRONMENT: Final = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_MODE": "PRODUCTION",
    "MAX_IMAGE_URL_DOWNLOAD_SIZE_MB": "0",
    # It would read an answer to its end after the client left, to bill it; we hang up, and the provider stops.
    "ANTHROPIC_MESSAGES_MAX_DETACHED_STREAM_DRAINS": "0",
}
# LiteLLM points tiktoken at its own tables; the gateway's tokenizer keeps what it found.
_RESTORED: Final = "TIKTOKEN_CACHE_DIR"
# What LiteLLM would import in the middle of its first call to a provider of OpenAI's kind, of a stream, and of an error: the first
# alone is 450 modules, and holds the event loop up for half a second. What another version does not have it does not need.
_NEEDED_BY_CALLS: Final = (
    "openai.resources",
    "anyio._backends._asyncio",
    "anyio.streams.memory",
    "anyio.streams.stapled",
    "anyio.streams.tls",
    "litellm._service_logger",
    "litellm.llms.litellm_proxy.chat.transformation",
    "litellm.llms.openai.chat.gpt_audio_transformation",
    "litellm.llms.openai_like.dynamic_config",
    "litellm.llms.vertex_ai.vertex_ai_partner_models.anthropic.transformation",
    "litellm.proxy._types",
    "litellm.proxy.guardrails.exception_utils",
    "litellm.proxy.openai_files_endpoints.common_utils",
    "litellm.types.integrations.compression_interception",
    "litellm.types.litellm_core_utils.streaming_chunk_builder_utils",
)
# `litellm_settings` that change how a request is translated. Callbacks, caches and fallbacks are not among them: money
# is settled here, never in a callback.
_SETTINGS: Final = frozenset({"drop_params", "modify_params", "ssl_verify", "ssl_certificate", "set_verbose"})


class LiteLLMLoader:
    """Loads the module at first use or ahead of it. `settings` are the user's `litellm_settings`."""

    def __init__(self, *, environment: MutableMapping[str, str], settings: Mapping[str, Any]) -> None:
        self._environment = environment
        self._settings = settings
        self._loading: asyncio.Task[ModuleType] | None = None
        self.switches: frozenset[str] = frozenset()  # names of arguments that LiteLLM acts on; known once it is loaded
        self._recording_off: ContextVar[bool] | None = None

    def begin(self) -> asyncio.Task[ModuleType]:
        """Start loading in the background unless it was started before; needs a running loop."""
        if self._loading is None or _failed(self._loading):
            self._loading = asyncio.create_task(asyncio.to_thread(self._load), name="load-litellm")
        return self._loading

    async def module(self) -> ModuleType:
        """The module, waiting for it if need be. Cancelling the wait does not stop the import."""
        return await asyncio.shield(self.begin())

    def record_nothing(self) -> None:
        """Of what the current task asks of LiteLLM from here on. Once it is loaded."""
        if self._recording_off is not None:
            self._recording_off.set(True)

    @property
    def loaded(self) -> ModuleType | None:
        task = self._loading
        return task.result() if task is not None and task.done() and not _failed(task) else None

    def _load(self) -> ModuleType:
        for name, value in _ENVIRONMENT.items():
            self._environment.setdefault(name, value)
        before = self._environment.get(_RESTORED)
        module = importlib.import_module("litellm")
        for name in _NEEDED_BY_CALLS:
            with suppress(ImportError):
                importlib.import_module(name)
        if before is None:
            self._environment.pop(_RESTORED, None)
        else:
            self._environment[_RESTORED] = before
        self._configure(module)
        self.switches = frozenset(importlib.import_module("litellm.types.utils").all_litellm_params)
        return module

    def _configure(self, module: ModuleType) -> None:
        quiet: dict[str, Any] = {
            "suppress_debug_info": True,  # or it prints help for every error
            "num_retries": 0,
            "DEFAULT_MAX_RETRIES": 0,  # for embeddings, where a 0 among the arguments counts as nothing said
            "callbacks": [],
            "success_callback": [],
            "failure_callback": [],
            # It fetches tables of tiktoken over the network when a stream breaks off. What nobody reported is counted here anyway.
            "disable_token_counter": True,
            "disable_aiohttp_trust_env": True,
            "user_url_validation": True,
            # Messages to a server that speaks OpenAI's protocol go as chat, which all of them have.
            "use_chat_completions_url_for_anthropic_messages": True,
        }
        for name, value in quiet.items():
            setattr(module, name, value)
        for name in _SETTINGS & self._settings.keys():
            setattr(module, name, self._settings[name])
        litellm_stand_ins.install()
        _forbid_own_calls()
        _forbid_redirects()
        _forbid_invented_ends()
        litellm_connections.watch()
        self._recording_off = litellm_bookkeeping.leave_out()
        litellm_plain_requests.leave_alone()
        _forbid_sending_twice()
        if not getattr(module, "set_verbose", False):
            for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
                logging.getLogger(name).setLevel(
                    logging.CRITICAL
                )  # its messages may hold what a provider said of a key


def _failed(task: asyncio.Task[ModuleType]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _forbid_own_calls() -> None:
    """The advisor tool of a messages request makes LiteLLM call a model that the client names, beyond what was reserved."""
    interceptors = importlib.import_module("litellm.llms.anthropic.pass_through.messages.interceptors")
    interceptors.get_messages_interceptors().clear()


def _forbid_invented_ends() -> None:
    """A stream that ends without a finish reason was cut off: LiteLLM would say "stop", as if the answer were whole."""
    wrapper = importlib.import_module("litellm.litellm_core_utils.streaming_handler").CustomStreamWrapper
    last_chunk = wrapper.finish_reason_handler
    if getattr(last_chunk, "is_honest", False):
        return

    def honest_last_chunk(self: Any) -> Any:
        if self.received_finish_reason is None and self.intermittent_finish_reason is None:
            raise EOFError(CUT)
        return last_chunk(self)

    honest_last_chunk.is_honest = True  # type: ignore[attr-defined]
    wrapper.finish_reason_handler = honest_last_chunk


def _forbid_redirects() -> None:
    """LiteLLM builds its HTTP clients so that they follow redirects, credential headers included, and has no switch.

    httpx asks each answer whether it points elsewhere; answering no gives the 3xx to LiteLLM, which reports an error.
    Nothing else in this process uses httpx.
    """
    httpx = importlib.import_module("httpx")
    httpx.Response.has_redirect_location = property(lambda _answer: False)


def _forbid_sending_twice() -> None:
    """When a connection is lost before the answer, LiteLLM sends the request again by itself. The provider may have
    worked on the first one, so a second attempt is the pipeline's to decide: it needs budget of its own."""
    httpx = importlib.import_module("httpx")
    handler = importlib.import_module("litellm.llms.custom_httpx.http_handler").AsyncHTTPHandler

    async def single_connection_post_request(*_arguments: Any, **_fields: Any) -> None:
        raise httpx.RemoteProtocolError("The connection was lost before the answer.")

    handler.single_connection_post_request = single_connection_post_request
