"""Keeps a stream within its hold: extends the hold before it is used up, and says when the stream has to end."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, cast

from gateway.pipeline.call import Call
from gateway.pipeline.cost_bounds import worst_case_cost
from gateway.pipeline.reserving import Reserving
from gateway.upstream.port import Deployment
from policies.reservation import Demand
from policies.tokens import Counting, counting_for

# Counting the output costs more than relaying it, so far from the limit it is done only now and then. Some text has fewer
# bytes per token, but each event adds 100 bytes or more of framing.
_BYTES_PER_TOKEN: Final = 4
_CHECK_INTERVAL_BYTES_MAX: Final = 16_384
# A fast provider's events arrive many at a time. Near the limit they are relayed one or two at a time, so that everything
# the hold still covers reaches the client.
_PART_BYTES_MIN: Final = 256
_UNLIMITED: Final = 2**62


class HoldKeeper:
    """Keeps one stream. `allowed_tokens` is what the hold covers, over all choices, as we count tokens."""

    def __init__(self, call: Call, reserving: Reserving, *, slice_tokens: int) -> None:
        self._call = call
        self._reserving = reserving
        self._slice_tokens = slice_tokens if call.holds_slices else 0
        self._extension_tokens = slice_tokens
        self._is_bound = call.grant is not None and call.chain.binds(call.grant)
        self._margin_tokens = self._slice_tokens // 4
        self._is_exhausted = False
        self.allowed_tokens = self._allowed_output_tokens()
        self._bytes_left = self._bytes_until_check(0)

    def parts(self, piece: bytes) -> Iterator[bytes]:
        """Split `piece` so that no part is likely to run past the next check by more than the hold covers."""
        if len(piece) <= self._bytes_left:
            yield piece
            return
        start = 0
        while start < len(piece):
            size = max(_PART_BYTES_MIN, self._bytes_left)
            yield piece[start : start + size]
            start += size

    def is_due(self, size_bytes: int) -> bool:
        """Whether it is time to count tokens and call `covers`, now that `size_bytes` more have arrived."""
        self._bytes_left -= size_bytes
        return self._bytes_left <= 0

    async def covers(self, output_tokens: int) -> bool:
        """Whether the hold covers this many tokens. Extends it first if needed, as far as the budgets allow."""
        if not self._is_bound:
            self._bytes_left = _CHECK_INTERVAL_BYTES_MAX
            return True
        if output_tokens > self.allowed_tokens:
            self._is_exhausted = False  # that was asked ahead of need, and others may have released tokens since
        while output_tokens + self._margin_tokens > self.allowed_tokens and not self._is_exhausted:
            self._is_exhausted = not await self._extend(
                max(self._extension_tokens, output_tokens - self.allowed_tokens)
            )
        self._bytes_left = self._bytes_until_check(output_tokens)
        return output_tokens <= self.allowed_tokens

    def _bytes_until_check(self, output_tokens: int) -> int:
        if not self._is_bound:
            return _CHECK_INTERVAL_BYTES_MAX
        ahead_tokens = self.allowed_tokens - self._margin_tokens - output_tokens
        return max(1, min(_CHECK_INTERVAL_BYTES_MAX, ahead_tokens * _BYTES_PER_TOKEN))

    async def _extend(self, tokens: int) -> bool:
        call = self._call
        extra_tokens = max(1, -(-tokens // call.request.choices))
        requested_max = call.request.output_tokens_max
        if self._slice_tokens and requested_max is not None and call.grant is not None:
            extra_tokens = min(extra_tokens, requested_max - call.grant.output_tokens)
        if extra_tokens <= 0:
            return False
        rate = 0
        if call.count is not None:
            rate = worst_case_cost(call.request, call.price, call.count, extra_tokens).output_nano_usd_per_token
        extra = Demand(0, extra_tokens, 1, output_nano_usd_per_token=rate, choices=call.request.choices, requests=0)
        if await self._reserving.extend(call, extra) is None:
            return False
        self.allowed_tokens = self._allowed_output_tokens()
        return True

    def _allowed_output_tokens(self) -> int:
        held_tokens = _held_output_tokens(self._call)
        return _UNLIMITED if held_tokens is None else _counting_of(self._call).highest_count(held_tokens)


def booked_output(call: Call, counted_tokens: int) -> int:
    """What to book for an output of `counted_tokens` whose provider has not reported its usage."""
    held_tokens = _held_output_tokens(call)
    return counted_tokens if held_tokens is None else _counting_of(call).booked_output(counted_tokens, held_tokens)


def _held_output_tokens(call: Call) -> int | None:
    """Of all choices; None without a hold."""
    return None if call.grant is None else call.grant.output_tokens * call.request.choices


def _counting_of(call: Call) -> Counting:
    deployment = cast(Deployment, call.deployment)  # admission chose one before it reserved
    return counting_for(deployment.model, deployment.provider)
