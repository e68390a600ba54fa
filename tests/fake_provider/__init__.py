"""A provider that tests own: see `server.FakeProvider`, and `directive.Directive` for all that it can be told."""

from tests.fake_provider.answer import WORDS, count_words
from tests.fake_provider.directive import Directive
from tests.fake_provider.received import Received
from tests.fake_provider.server import FakeProvider

__all__ = ["WORDS", "Directive", "FakeProvider", "Received", "count_words"]
