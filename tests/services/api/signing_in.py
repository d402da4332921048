"""How a browser signs in with the identity provider of the tests."""

import httpx


def there_and_back(browser: httpx.Client) -> str:
    """Go to the provider, and return where it sends the browser back to."""
    gone = browser.get("/login/oidc")
    assert gone.status_code == 303, gone.text
    back = httpx.get(gone.headers["location"])
    assert back.status_code == 302
    return str(back.headers["location"])


def sign_in(browser: httpx.Client) -> httpx.Response:
    return browser.get(there_and_back(browser))
