"""Imports LiteLLM: late, once, in a thread, and silenced.

The import takes seconds and 170 MB, which a gateway that only uses the direct lane never pays for.
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

from gateway.upstream import (
    litellm_bookkeeping,
    litellm_connections,
    litellm_plain_requests,
    litellm_stand_ins,
    litellm_streams,
    litellm_usage,
)

# No price map from the network, no `.env` from the working directory, and no downloads of images that a client names:
# the gateway contacts the deployment's origin and nothing else. Values that the user has set win.
_ENVIRONMENT: Final = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_MODE": "PRODUCTION",
    "MAX_IMAGE_URL_DOWNLOAD_SIZE_MB": "0",
    # After the client left, LiteLLM would read the answer to its end to bill it. We disconnect, and the provider stops.
    "ANTHROPIC_MESSAGES_MAX_DETACHED_STREAM_DRAINS": "0",
}
# LiteLLM points tiktoken at its own tables. Restored after the import, for the gateway's own tokenizer.
_RESTORED_VARIABLE: Final = "TIKTOKEN_CACHE_DIR"
# Modules that LiteLLM would import during its first call to an OpenAI-like provider, its first stream and its first error: the
# first alone means 450 modules, which block the event loop for half a second. A version that lacks one of them does not need it.
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
# The `litellm_settings` that change how a request is translated. Callbacks, caches and fallbacks are not among them:
# caching, retries and settlement are the gateway's own job.
_SETTINGS: Final = frozenset({"drop_params", "modify_params", "ssl_verify", "ssl_certificate", "set_verbose"})


class LiteLLMLoader:
    """Loads the module at first use or earlier. `settings` are the user's `litellm_settings`."""

    def __init__(self, *, environment: MutableMapping[str, str], settings: Mapping[str, Any]) -> None:
        self._environment = environment
        self._settings = settings
        self._loading: asyncio.Task[ModuleType] | None = None
        self.switches: frozenset[str] = frozenset()  # names of arguments that LiteLLM acts on, once it is loaded
        self._recording_off: ContextVar[bool] | None = None

    def begin(self) -> asyncio.Task[ModuleType]:
        """Start loading in the background unless that has been done; needs a running loop."""
        if self._loading is None or _failed(self._loading):
            self._loading = asyncio.create_task(asyncio.to_thread(self._load), name="load-litellm")
        return self._loading

    async def module(self) -> ModuleType:
        """The module, waiting for it if necessary. Cancelling the wait does not stop the import."""
        return await asyncio.shield(self.begin())

    def record_nothing(self) -> None:
        """Turn off LiteLLM's records for the current task. Has no effect before LiteLLM is loaded."""
        if self._recording_off is not None:
            self._recording_off.set(True)

    @property
    def loaded(self) -> ModuleType | None:
        task = self._loading
        return task.result() if task is not None and task.done() and not _failed(task) else None

    def _load(self) -> ModuleType:
        for name, value in _ENVIRONMENT.items():
            self._environment.setdefault(name, value)
        previous = self._environment.get(_RESTORED_VARIABLE)
        module = importlib.import_module("litellm")
        for name in _NEEDED_BY_CALLS:
            with suppress(ImportError):
                importlib.import_module(name)
        if previous is None:
            self._environment.pop(_RESTORED_VARIABLE, None)
        else:
            self._environment[_RESTORED_VARIABLE] = previous
        self._configure(module)
        self.switches = frozenset(importlib.import_module("litellm.types.utils").all_litellm_params)
        return module

    def _configure(self, module: ModuleType) -> None:
        overrides: dict[str, Any] = {
            "suppress_debug_info": True,  # otherwise it prints help for every error
            "num_retries": 0,
            "DEFAULT_MAX_RETRIES": 0,  # for embeddings, where an argument of 0 counts as not given
            "callbacks": [],
            "success_callback": [],
            "failure_callback": [],
            # It would fetch tiktoken's tables over the network when a stream breaks off. We count unreported tokens ourselves.
            "disable_token_counter": True,
            "disable_aiohttp_trust_env": True,
            "user_url_validation": True,
            # Messages to an OpenAI-compatible server are sent as chat, which all of these support.
            "use_chat_completions_url_for_anthropic_messages": True,
        }
        for name, value in overrides.items():
            setattr(module, name, value)
        for name in _SETTINGS & self._settings.keys():
            setattr(module, name, self._settings[name])
        litellm_stand_ins.install()
        _forbid_own_calls()
        _forbid_redirects()
        litellm_streams.correct()
        litellm_usage.allow_missing()
        litellm_connections.patch_httpx()
        self._recording_off = litellm_bookkeeping.disable_bookkeeping()
        litellm_plain_requests.skip_conversion()
        _forbid_sending_twice()
        if not getattr(module, "set_verbose", False):
            for name in ("LiteLLM", "LiteLLM Router", "LiteLLM Proxy"):
                # Its messages may repeat what a provider said about a key.
                logging.getLogger(name).setLevel(logging.CRITICAL)


def _failed(task: asyncio.Task[ModuleType]) -> bool:
    return task.done() and (task.cancelled() or task.exception() is not None)


def _forbid_own_calls() -> None:
    """The advisor tool of a messages request makes LiteLLM call another model of the client's choice, without a reservation."""
    interceptors = importlib.import_module("litellm.llms.anthropic.pass_through.messages.interceptors")
    interceptors.get_messages_interceptors().clear()


def _forbid_redirects() -> None:
    """LiteLLM's HTTP clients follow redirects, credential headers included, and there is no switch for that.

    httpx asks each response whether it is a redirect. Saying no hands the 3xx to LiteLLM, which reports an error.
    Nothing else in this process uses httpx.
    """
    httpx = importlib.import_module("httpx")
    httpx.Response.has_redirect_location = property(lambda _answer: False)


def _forbid_sending_twice() -> None:
    """When a connection is lost before the answer, LiteLLM resends the request by itself. The provider may have processed
    the first one, so the pipeline has to decide about a retry, which needs its own budget."""
    httpx = importlib.import_module("httpx")
    handler = importlib.import_module("litellm.llms.custom_httpx.http_handler").AsyncHTTPHandler

    async def single_connection_post_request(*_arguments: Any, **_fields: Any) -> None:
        raise httpx.RemoteProtocolError("The connection was lost before the answer.")

    handler.single_connection_post_request = single_connection_post_request
