"""How to point a client at Farebox and tag its calls: one snippet per client, in `snippets/`.

`farebox env --client NAME` prints a snippet, docs/clients.md shows them all, and the tests of `tests/clients` run them as they are.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from importlib.resources import files
from typing import Final


@dataclass(frozen=True, slots=True)
class Connection:
    """The values that a snippet is filled in with. `url` is the gateway's address, without a path."""

    url: str = "http://127.0.0.1:4000"
    key: str = "local"
    model: str = "mock"
    workflow: str = "my-workflow"
    run: str = "run-1"
    step: str = "draft"


@dataclass(frozen=True, slots=True)
class Client:
    title: str
    language: str  # of the snippet, as Markdown names it
    install: str = ""  # the command that installs the client, if there is a common one
    refusal: str = ""  # what the client does with a refused call, unless it simply shows the message
    note: str = ""


CLIENTS: Final[dict[str, Client]] = {
    "openai-python": Client(
        "OpenAI SDK for Python",
        "python",
        "pip install openai",
        "`openai.APIStatusError` with `status_code` 402, or `openai.RateLimitError` for a budget that comes back; `.code` and "
        "`.body['metadata']` name the budget.",
        "Chat, Responses, embeddings and completions alike; `AsyncOpenAI` takes the same arguments.",
    ),
    "openai-node": Client(
        "OpenAI SDK for Node",
        "javascript",
        "npm install openai",
        "`OpenAI.APIError` with `status` 402, or `OpenAI.RateLimitError`; `.code` and `.error.metadata` name the budget.",
    ),
    "anthropic-python": Client(
        "Anthropic SDK for Python",
        "python",
        "pip install anthropic",
        "`anthropic.PaymentRequiredError`, or `anthropic.RateLimitError` for a budget that comes back.",
        "The base URL has no `/v1`. The model may be of any provider: what is not Anthropic's is translated.",
    ),
    "anthropic-node": Client(
        "Anthropic SDK for Node",
        "javascript",
        "npm install @anthropic-ai/sdk",
        "`Anthropic.APIError` with `status` 402, or `Anthropic.RateLimitError`.",
        "The base URL has no `/v1`.",
    ),
    "langchain": Client(
        "LangChain",
        "python",
        "pip install langchain-openai",
        "`openai.APIStatusError`, unwrapped.",
        "`stream_usage=True` shows the usage of streams; Farebox counts them either way.",
    ),
    "llamaindex": Client(
        "LlamaIndex", "python", "pip install llama-index-llms-openai-like", "`openai.APIStatusError`, unwrapped."
    ),
    "crewai": Client("CrewAI", "python", "pip install crewai", "The error's text comes through CrewAI's own error."),
    "openai-agents": Client(
        "OpenAI Agents SDK",
        "python",
        "pip install openai-agents",
        "`openai.APIStatusError`, unwrapped.",
        'It speaks Responses; `set_default_openai_api("chat_completions")` makes it speak chat.',
    ),
    "pydantic-ai": Client(
        "Pydantic AI",
        "python",
        'pip install "pydantic-ai-slim[openai]"',
        "`pydantic_ai.exceptions.ModelHTTPError` with `status_code` 402 and the error object as `body`.",
    ),
    "litellm": Client(
        "LiteLLM as a client",
        "python",
        'pip install "litellm[mcp]"',
        "`litellm.APIError` with the message.",
        "Without its extra `mcp`, LiteLLM 1.106 fails in calls with tools.",
    ),
    "vercel-ai": Client(
        "Vercel AI SDK",
        "javascript",
        "npm install ai @ai-sdk/openai-compatible",
        "`APICallError` with `statusCode` 402 and `isRetryable` false.",
    ),
    "llm": Client("llm", "yaml", "pip install llm", "`Error:` with the message, exit code 1."),
    "claude-code": Client(
        "Claude Code", "bash", "", "", "Any model of the configuration may be named, of any provider."
    ),
    "codex": Client("Codex", "toml"),
    "aider": Client(
        "aider",
        "bash",
        "pip install aider-chat",
        "the message, again and again for a minute: aider 0.86 takes LiteLLM's `APIError`, which a 402 is there, for an error"
        " that passes. Each try is refused and costs nothing; Ctrl-C ends it.",
        "The path carries the tags. Headers do as well, and are heard before it: `extra_params: {extra_headers: {...}}` of the model"
        " in `.aider.model.settings.yml`.",
    ),
    "cursor": Client("Cursor", "text"),
    "open-webui": Client("Open WebUI", "bash", "pip install open-webui"),
    "n8n": Client("n8n", "text"),
    "curl": Client("curl", "bash"),
}


def snippet(name: str, connection: Connection) -> str:
    """The text for a client of `CLIENTS`. Raises `KeyError` for another name."""
    if name not in CLIENTS:
        raise KeyError(name)
    text = (files("gateway.cli") / "snippets" / f"{name}.txt").read_text()
    for part in fields(Connection):
        text = text.replace("{{" + part.name + "}}", getattr(connection, part.name))
    return text


def document() -> str:
    """docs/clients.md: what is common, then every client."""
    text = (files("gateway.cli") / "snippets" / "clients.md").read_text()
    return text.rstrip() + "\n" + "".join(_section(name, client) for name, client in CLIENTS.items())


def _section(name: str, client: Client) -> str:
    parts = [f"\n## {client.title}\n"]
    if client.install:
        parts.append(f"`{client.install}`\n")
    parts.append(f"```{client.language}\n{snippet(name, Connection())}```\n")
    parts += [f"{client.note}\n"] if client.note else []
    parts += [f"A refused call: {client.refusal}\n"] if client.refusal else []
    return "\n".join(parts)
