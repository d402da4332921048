"""Tokens, on every database: a secret shown once, and a row that tells nothing of it."""

import re
from datetime import UTC, datetime, timedelta

import pytest
import sqlalchemy as sa

from services.store import NotFound, Store, StoreError

SOON = timedelta(hours=1)


def everything_kept(store: Store) -> str:
    with store._database.reading() as connection:
        return str(connection.execute(sa.text("SELECT * FROM tokens")).all())


def test_a_secret_opens_its_own_token_and_is_not_kept(store):
    row, secret = store.create_token("laptop", owner="ann", scope="write")
    other, another = store.create_token("laptop", owner="bob", scope="read")
    assert re.fullmatch(r"nab_[A-Za-z0-9_-]{43}", secret)
    assert store.token(secret) == row
    assert store.token(another) == other
    assert secret != another
    assert (row.name, row.owner, row.scope, row.expires_at, row.revoked_at) == ("laptop", "ann", "write", None, None)
    assert secret not in everything_kept(store)
    assert secret.removeprefix("nab_") not in everything_kept(store)
    assert secret not in repr(row)


@pytest.mark.parametrize("change", ["", "x", "nab_", "nab_\ud800", "nab_" + "x" * 10_000, "{}x", " {}", "NAB_{}"])
def test_what_is_no_secret_opens_nothing(store, change):
    _, secret = store.create_token("", owner="ann", scope="read")
    assert store.token(change.format(secret)) is None
    assert store.token(secret[:-1]) is None


def test_a_token_ends(store):
    row, secret = store.create_token("", owner="ann", scope="read", expires_at=datetime.now(UTC) + SOON)
    assert store.token(secret) == row == store.valid_token(row.id)
    with store._database.writing() as connection:
        past = datetime.now(UTC) - SOON
        connection.execute(sa.text("UPDATE tokens SET expires_at = :past"), {"past": past.replace(tzinfo=None)})
    assert store.token(secret) is None
    assert store.valid_token(row.id) is None


def test_a_token_is_revoked_once_and_for_all(store):
    row, secret = store.create_token("", owner="ann", scope="read")
    revoked = store.revoke_token(row.id)
    assert revoked.revoked_at is not None
    assert store.revoke_token(row.id) == revoked
    assert store.token(secret) is None
    assert store.valid_token(row.id) is None
    with pytest.raises(NotFound, match="there is no token 99; `nas-blockout token list` lists them"):
        store.revoke_token(99)


def test_tokens_are_listed_with_their_owners(store):
    first, _ = store.create_token("a", owner="ann", scope="read")
    second, _ = store.create_token("b", owner="bob@example.org", scope="write")
    assert store.tokens() == (first, second)
    assert store.tokens("ann") == (first,)
    assert store.tokens("nobody") == ()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scope": "root"}, "scope must be one of read, write, admin, got 'root'"),
        ({"owner": ""}, "owner must be 1 to 64 letters"),
        ({"owner": "a b"}, "got 'a b'"),
        ({"owner": "é"}, "owner must be"),
        ({"owner": "a\n"}, "owner must be"),
        ({"name": "x" * 101}, "name must be up to 100 printable"),
        ({"name": "a\x1b[2J"}, "printable"),
        ({"expires_at": datetime(2000, 1, 1)}, "must have a time zone"),
        ({"expires_at": datetime(2000, 1, 1, tzinfo=UTC)}, "expires_at must be in the future, got 2000"),
    ],
)
def test_values_that_break_a_rule_are_refused(store, values, message):
    with pytest.raises(ValueError, match=message):
        store.create_token(**{"name": "", "owner": "ann", "scope": "read"} | values)
    assert store.tokens() == ()


def test_the_database_refuses_an_unknown_scope(store):
    store.create_token("", owner="ann", scope="read")
    with pytest.raises(StoreError, match=r"ck_tokens_scope|CHECK"), store._database.writing() as connection:
        connection.execute(sa.text("UPDATE tokens SET scope = 'odd'"))
