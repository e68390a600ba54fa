"""Quality as the share of facts kept, and the return on investment of a compression."""

import pytest

from policies.compression import compression_roi, quality
from policies.compression.facts import Facts, facts_of, identifiers_of
from policies.compression.relevance import query_terms, relevance
from policies.compression.scoring import ContentReader, QualityScorer

REPORT = (
    "Order ord_8123 from Hamburg was delivered on 2026-11-22 for 418.50 EUR. The customer Miller complained about scratches. "
    "The invoice was sent to ann@example.org. Weather was mild and nobody noticed the drizzle."
)


def test_facts_are_grouped_into_numbers_identifiers_names_and_rare_words() -> None:
    facts = facts_of(REPORT)
    assert facts.numbers == {"2026-11-22", "418.50"}
    assert facts.identifiers == {"ord_8123", "ann@example.org"}
    assert {"Hamburg", "Miller", "EUR"} <= facts.names
    assert {"scratches", "drizzle"} <= facts.rare
    assert facts_of("[… 37 of 120 lines left out · 3fa9 …]") == Facts(
        frozenset(), frozenset(), frozenset(), frozenset()
    )


@pytest.mark.parametrize(
    ("text", "identifiers"),
    [
        ("see req-77aa and path/to/file.py", {"req-77aa", "path/to/file.py"}),
        ("totals 12345 and 99, 10.50 EUR", {"12345"}),
        ("2026-11-22 10:00:01 from 10.0.0.17", {"10.0.0.17"}),
        ("well-known words, e.g. these", set()),
        ("maxRetries max_retries https://x.io/a?b", {"maxRetries", "max_retries", "https://x.io/a"}),
    ],
)
def test_identifiers_are_told_apart_from_words_dates_and_small_numbers(text: str, identifiers: set[str]) -> None:
    assert identifiers_of(text) == identifiers


@pytest.mark.parametrize(
    ("before", "after", "lowest", "highest"),
    [
        (REPORT, REPORT, 1.0, 1.0),
        (REPORT, "", 0.0, 0.0),
        ("", "", 1.0, 1.0),
        ("", "anything", 1.0, 1.0),
        (REPORT, REPORT.upper().lower().replace("miller", "Miller"), 0.5, 0.95),
        (REPORT, REPORT.split(" Weather")[0], 0.85, 0.99),
        (REPORT, "Weather was mild and nobody noticed the drizzle.", 0.0, 0.3),
        ("aa bb cc dd", "aa bb", 0.5, 0.5),
        ("no facts here no facts here", "no facts here", 1.0, 1.0),
    ],
)
def test_quality_is_the_share_of_facts_kept(before: str, after: str, lowest: float, highest: float) -> None:
    assert lowest <= quality(before, after, "") <= highest


def test_losing_a_fact_that_is_asked_for_lowers_quality_more() -> None:
    without_customer = REPORT.replace("The customer Miller complained about scratches. ", "")
    neutral = quality(REPORT, without_customer, "")
    asked = quality(REPORT, without_customer, "Who is the customer that complained?")
    other = quality(REPORT, without_customer, "Where was the invoice sent?")
    assert asked < neutral < other


def test_quality_never_falls_as_more_sentences_are_kept() -> None:
    sentences = REPORT.split(". ")
    scores = [
        quality(REPORT, ". ".join(sentences[:sentence_count]), "") for sentence_count in range(len(sentences) + 1)
    ]
    assert scores == sorted(scores)
    assert scores[-1] == 1.0


def test_query_terms_are_stemmed_content_words_and_at_most_48() -> None:
    terms = query_terms("What is the max_retries setting of ord-8123, and when was it deployed?")
    assert {"max_retries", "ord-8123", "retr", "sett", "deploy"} <= set(terms)
    assert "what" not in terms
    assert len(query_terms("word1 " * 10 + " ".join(f"term{number}x" for number in range(500)))) == 48


def test_rare_query_terms_rank_higher_and_neighbours_share_relevance() -> None:
    units = ["the server runs", "the server retries", "nothing", "the server stops", "unrelated"]
    scores = relevance(units, query_terms("server retries"))
    assert scores[1] == max(scores)
    assert 0 < scores[2] < scores[1]
    assert relevance(units, ()) == [0.0] * 5


PRICE, CACHED = 2_500_000_000, 250_000_000  # nano-USD per million tokens: $2.50, and 90 % less from the cache


@pytest.mark.parametrize(
    ("saved", "price", "cached_price", "cached_before", "cached_after", "cost", "net", "is_worth_it"),
    [
        (1000, PRICE, None, 0, 0, 0, 2_500_000, True),
        (1000, PRICE, None, 5000, 0, 0, 2_500_000, True),  # no discount: nothing to lose
        (1000, PRICE, None, 0, 0, 2_500_000, 0, False),
        (1000, PRICE, None, 0, 0, 3_000_000, -500_000, False),
        (1000, PRICE, CACHED, 1000, 0, 0, 250_000, True),
        (1000, PRICE, CACHED, 10_000, 0, 0, -20_000_000, False),
        (1000, PRICE, CACHED, 10_000, 10_000, 0, 2_500_000, True),  # the change is after the cached part
        (1000, PRICE, CACHED, 2000, 4000, 0, 7_000_000, True),  # the compressed prompt is cached too
        (1000, PRICE, 2 * PRICE, 2000, 0, 0, 2_500_000, True),  # reading from this cache costs more than it saves
        (0, PRICE, None, 0, 0, 1, -1, False),
        (1000, 0, None, 0, 0, 0, 0, True),
        (1000, 0, None, 0, 0, 1, -1, False),
        (1, 999_999, None, 0, 0, 0, 0, True),  # saved money is rounded down: nothing, at no cost
        (0, 999_999, 0, 1, 0, 0, -1, False),  # lost money is rounded up
    ],
)
def test_roi_is_saved_cost_minus_lost_cache_discount_minus_compressor_cost(
    saved: int,
    price: int,
    cached_price: int | None,
    cached_before: int,
    cached_after: int,
    cost: int,
    net: int,
    is_worth_it: bool,
) -> None:
    roi = compression_roi(
        saved,
        price,
        cached_price,
        cached_tokens_before=cached_before,
        cached_tokens_after=cached_after,
        compressor_cost_nano_usd=cost,
    )
    assert roi.net_nano_usd == net
    assert roi.is_worth_it is is_worth_it
    assert roi.net_nano_usd == roi.saved_nano_usd - roi.cache_lost_nano_usd - roi.cost_nano_usd


@pytest.mark.parametrize("place", range(6))
def test_roi_refuses_negative_arguments(place: int) -> None:
    arguments = [1] * 6
    arguments[place] = -1
    saved, price, cached, before, after, cost = arguments
    with pytest.raises(ValueError, match="negative"):
        compression_roi(
            saved,
            price,
            cached,
            cached_tokens_before=before,
            cached_tokens_after=after,
            compressor_cost_nano_usd=cost,
        )


def test_cut_record_lowers_quality_even_if_its_number_occurs_elsewhere() -> None:
    records = [f"Part {number} was postponed until {number + 1}." for number in range(9)]
    without = " ".join([*records[:4], *records[5:]])
    scorer = QualityScorer.of(" ".join(records), "Until when was part 4 postponed?", ContentReader())
    assert scorer.score_rephrased(without) == 1.0
    assert scorer.score_cut(without) < 0.97
    assert scorer.score_cut("\n".join(records)) == 1.0
