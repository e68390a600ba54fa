"""A writer that continues until its run's budget is used up, and returns what it has written.

It uses only the OpenAI SDK. The headers of each answer say what is left, the last answer that fits is clamped, and the first call that
does not fit is refused before it costs anything.
"""

from __future__ import annotations

import os
import uuid

from openai import APIStatusError, OpenAI

RUN = os.environ.get("RUN_ID", f"guide-{uuid.uuid4().hex[:8]}")
client = OpenAI(
    base_url=os.environ.get("FAREBOX_BASE_URL", "http://127.0.0.1:4000/v1"),
    api_key=os.environ.get("FAREBOX_KEY", "local"),
    default_headers={"x-workflow-id": "example-guide", "x-workflow-run-id": RUN},
)


def write_guide(districts: list[str]) -> list[str]:
    """Write as many chapters as the budget pays for."""
    chapters: list[str] = []
    for number, district in enumerate(districts, 1):
        try:
            raw = client.chat.completions.with_raw_response.create(
                model="mock",
                messages=[{"role": "user", "content": f"Write a chapter of a city guide about {district}."}],
                extra_headers={"x-workflow-step": f"chapter-{number}"},
            )
        except APIStatusError as error:
            if error.status_code != 402:  # 429 is worth waiting for, and the SDK has done so already
                raise
            print(f"chapter {number}: refused, {error.code}: {error.body['message']}")  # type: ignore[index]
            break
        answer = raw.parse().choices[0]
        chapters.append(answer.message.content or "")
        actions = raw.headers.get("x-budget-actions", "as asked")
        print(
            f"chapter {number}: {answer.finish_reason}, {actions}, {raw.headers['x-budget-run-remaining']} tokens left"
        )
    return chapters


chapters = write_guide([f"district {number}" for number in range(1, 21)])
print(f"The guide has {len(chapters)} chapters, and its run {RUN} never spent more than it was given.")
