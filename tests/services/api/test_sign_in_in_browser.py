"""Signing in with a real browser, whose rules for cookies and forms of other sites no client of ours has."""

from typing import Any

import pytest

from services.store import Store
from tests.services.identity_provider import providing


@pytest.fixture
def store(sqlite_store: Store) -> Store:
    return sqlite_store


@pytest.fixture
def provider():
    # To a browser, localhost is another site than 127.0.0.1.
    with providing("localhost") as found:
        found.asks = True
        yield found


def test_a_person_signs_in_and_out_over_two_sites(browser: Any, signing_in, served, provider, store) -> None:
    address = served(signing_in(name="Example SSO"))
    with browser.new_context() as context:
        page = context.new_page()
        page.goto(f"{address}/login")
        page.get_by_role("link", name="Sign in with Example SSO").click()
        page.get_by_role("link", name="Allow").click()
        page.wait_for_url(f"{address}/")
        assert page.get_by_role("heading", name="Studies").is_visible()
        assert "s-1" in page.locator("header").inner_text()
        page.reload()
        assert "s-1" in page.locator("header").inner_text()
        page.get_by_role("button", name="Log out").click()
        page.wait_for_url(f"{provider.issuer}/logout?**")
        page.goto(f"{address}/")
        page.wait_for_url(f"{address}/login")
    assert [row.action for row in reversed(store.audit_log())] == ["person-add", "login", "logout"]
