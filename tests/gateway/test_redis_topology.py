from __future__ import annotations

import certifi
import pytest

from gateway.config.schema import StorageConfig
from gateway.ledger.port import LedgerError
from gateway.ledger.redis_connection import Credentials
from gateway.ledger.redis_tls import Tls
from gateway.ledger.redis_topology import parse_url, slot_of

HERE = ("127.0.0.1", 6379)
ROOTS = certifi.where()
ROOTED, UNCHECKED = Tls(ca_certs=ROOTS), Tls(check_hostname=False)


@pytest.mark.parametrize(
    ("url", "mode", "nodes", "credentials"),
    [
        ("redis://", "single", [HERE], Credentials()),
        ("redis://cache", "single", [("cache", 6379)], Credentials()),
        ("redis://cache:7000/4", "single", [("cache", 7000)], Credentials(database=4)),
        ("redis://:pw@cache/", "single", [("cache", 6379)], Credentials("", "pw")),
        ("rediss://u%3As:p%40%2Fw@cache", "single", [("cache", 6379)], Credentials("u:s", "p@/w", tls=Tls())),
        ("redis://[::1]:7000", "single", [("::1", 7000)], Credentials()),
        ("redis://[::1]", "single", [("::1", 6379)], Credentials()),
        ("redis+cluster://a,b:7001,c", "cluster", [("a", 6379), ("b", 7001), ("c", 6379)], Credentials()),
        ("rediss+cluster://u:p@a:1", "cluster", [("a", 1)], Credentials("u", "p", tls=Tls())),
        ("redis+sentinel://a,b:1/budget/2", "sentinel", [("a", 26379), ("b", 1)], Credentials("", "", 2, None, True)),
        ("redis://cache/0?timeout=5", "single", [("cache", 6379)], Credentials()),
        ("redis://:p?w@cache", "single", [("cache", 6379)], Credentials("", "p?w")),
        ("rediss://cache?ssl_check_hostname=false", "single", [("cache", 6379)], Credentials(tls=UNCHECKED)),
        ("rediss://cache/3?ssl_cert_reqs=required", "single", [("cache", 6379)], Credentials(database=3, tls=Tls())),
        (f"rediss+cluster://a,b?ssl_ca_certs={ROOTS}", "cluster", [("a", 6379), ("b", 6379)], Credentials(tls=ROOTED)),
    ],
)
def test_url_gives_mode_nodes_and_credentials(
    url: str, mode: str, nodes: list[tuple[str, int]], credentials: Credentials
) -> None:
    target = parse_url(url)
    assert not url.startswith("redis") or StorageConfig(ledger=url).ledger == url, "the configuration takes it, too"
    assert (target.mode, list(target.nodes), target.credentials) == (mode, nodes, credentials)
    assert target.service == ("budget" if mode == "sentinel" else "")


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("cache:6379", "starts with redis://"),
        ("http://cache", "starts with redis://"),
        ("redis+magic://cache", "starts with redis://"),
        ("redis://:s3cret@cache:port", "'port' is not a port number"),
        ("redis://:s3cret@a,b", "several hosts"),
        ("redis://:s3cret@cache/main", "'main' is not the number"),
        ("redis+cluster://:s3cret@a/3", "only database 0"),
        ("redis+sentinel://:s3cret@a", "name of the primary"),
        ("redis://:s3cret@a?ssl_ca_certs=/ca.crt", "ssl_ca_certs needs a URL with TLS"),
        (
            "rediss://:s3cret@a?ssl_ca_certs=/no/ca.crt",
            r"ssl_ca_certs of storage.ledger cannot be read: /no/ca.crt \(No such",
        ),
        ("rediss://:s3cret@a?ssl_keyfile=/no/a.key", "ssl_keyfile needs ssl_certfile"),
        (f"rediss://:s3cret@a?ssl_certfile={__file__}", "they must be PEM"),
        ("rediss://:s3cret@a?ssl_cert_reqs=none", "always verified"),
        ("rediss://:s3cret@a?ssl_ciphers=none", "ssl_ciphers is not supported"),
        ("rediss://:s3cret@a?ssl_check_hostname=maybe", "true or false"),
    ],
)
def test_invalid_url_is_refused_without_showing_its_password(url: str, why: str) -> None:
    with pytest.raises(LedgerError, match=why) as caught:
        parse_url(url)
    assert "s3cret" not in str(caught.value)


def test_repr_hides_the_password() -> None:
    assert "s3cret" not in repr(parse_url("redis://:s3cret@cache"))


@pytest.mark.parametrize(
    ("key", "slot"),
    [
        # From the Redis Cluster specification, and `CLUSTER KEYSLOT` of Redis 7.
        ("123456789", 0x31C3),
        ("foo", 12182),
        ("{user1000}.following", 3443),
        ("{user1000}.followers", 3443),
        ("foo{}{bar}", 8363),
        ("foo{{bar}}zap", 4015),
        ("foo{bar}{zap}", 5061),
    ],
)
def test_hash_slot_of_a_key(key: str, slot: int) -> None:
    assert slot_of(key) == slot
