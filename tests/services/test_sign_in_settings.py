"""Settings of signing in: what makes no sense is refused with a reason, and the client's secret is never shown."""

import pytest

from services.settings import Settings, SettingsError, SignInSettings

GIVEN = {"issuer": "https://sso.example.org/realms/x", "client_id": "nas-blockout"}


def read(**values: str) -> SignInSettings | None:
    given = {f"NAS_BLOCKOUT_OIDC_{name.upper()}": value for name, value in values.items()}
    return Settings.from_environment(given).sign_in


def test_without_an_issuer_there_are_tokens_only():
    assert read() is None
    assert read(issuer=" ", client_id="", client_secret="", owner_claim="sub", new_owners="none", name="") is None


def test_values_are_taken_as_given_and_the_rest_is_strict():
    found = read(**GIVEN)
    assert found == SignInSettings(**GIVEN)
    assert (found.new_owners, found.owner_claim, found.scope) == ("none", "sub", "write")
    found = read(
        **GIVEN,
        client_secret="hunter22",
        redirect_url="https://studies.example.org/login/oidc/callback",
        scopes="email groups",
        email_domains="Example.org, example.com",
        groups_claim="realm_access.roles",
        groups="/a,b c",
        administrators="groups=cn=admins,realm_access.roles=admin",
        teams="vision=/research/vision,nlp=nlp",
        new_owners="allowed",
        scope="read",
    )
    assert found.scopes == "openid email groups"
    assert found.email_domains == ("example.org", "example.com")
    assert found.groups == ("/a", "b c")
    assert found.administrators == (("groups", "cn=admins"), ("realm_access.roles", "admin"))
    assert found.teams == (("vision", "/research/vision"), ("nlp", "nlp"))


def test_the_secret_comes_from_a_file_and_is_not_shown(tmp_path):
    (tmp_path / "secret").write_text("hunter22\n")
    found = read(**GIVEN, client_secret_file=str(tmp_path / "secret"))
    assert found.client_secret == "hunter22"
    given = {f"NAS_BLOCKOUT_OIDC_{name.upper()}": value for name, value in GIVEN.items()}
    settings = Settings.from_environment({**given, "NAS_BLOCKOUT_OIDC_CLIENT_SECRET": "hunter22"})
    for text in (repr(settings), repr(settings.sign_in), str(settings.sign_in)):
        assert "hunter22" not in text


def test_an_issuer_is_kept_to_the_letter():
    assert read(**{**GIVEN, "issuer": "https://x.auth0.com/"}).issuer == "https://x.auth0.com/"
    for local in ("http://127.0.0.1:8080", "http://localhost/realms/x", "http://[::1]:80"):
        assert read(**{**GIVEN, "issuer": local}).issuer == local


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"client_id": "x"}, r"OIDC_ISSUER is not set, but NAS_BLOCKOUT_OIDC_CLIENT_ID is"),
        ({"issuer": GIVEN["issuer"]}, r"OIDC_CLIENT_ID is not set"),
        ({**GIVEN, "issuer": "sso.example.org"}, r"OIDC_ISSUER must be a URL"),
        ({**GIVEN, "issuer": "https://me:hunter22@sso"}, r"OIDC_ISSUER must be a URL .* got 'https://me:\*\*\*@sso'"),
        ({**GIVEN, "issuer": "http://sso.example.org"}, r"OIDC_ISSUER must begin with https://"),
        ({**GIVEN, "issuer": "http://localhost.evil.example"}, r"OIDC_ISSUER must begin with https://"),
        ({**GIVEN, "redirect_url": "javascript:alert(1)"}, r"OIDC_REDIRECT_URL must be a URL"),
        (
            {**GIVEN, "owner_claim": "name"},
            r"OIDC_OWNER_CLAIM must be one of sub, preferred_username, email, got 'name'",
        ),
        ({**GIVEN, "new_owners": "all"}, r"OIDC_NEW_OWNERS must be one of none, allowed, anyone, got 'all'"),
        ({**GIVEN, "new_owners": "allowed"}, r"OIDC_NEW_OWNERS is allowed, but nobody is"),
        ({**GIVEN, "scope": "admin"}, r"OIDC_SCOPE must be one of write, read, got 'admin'"),
        ({**GIVEN, "email_domains": "@example.org"}, r"OIDC_EMAIL_DOMAINS must be domains"),
        ({**GIVEN, "email_domains": "*.example.org"}, r"OIDC_EMAIL_DOMAINS must be domains"),
        ({**GIVEN, "administrators": "operators"}, r"OIDC_ADMINISTRATORS must be pairs such as groups=operators"),
        ({**GIVEN, "administrators": "=operators"}, r"OIDC_ADMINISTRATORS must be pairs"),
        ({**GIVEN, "teams": "vision="}, r"OIDC_TEAMS must be pairs such as"),
        ({**GIVEN, "teams": "a b=c"}, r"OIDC_TEAMS: a team has 1 to 64"),
        ({**GIVEN, "teams": "a=b,a=c"}, r"OIDC_TEAMS must name each team once"),
        ({**GIVEN, "name": "x" * 61}, r"OIDC_NAME must have up to 60"),
        ({**GIVEN, "issuer_url": "x"}, r"NAS_BLOCKOUT_OIDC_ISSUER_URL: unknown variable"),
    ],
)
def test_what_makes_no_sense_is_refused_with_rule_and_value(values, message):
    with pytest.raises(SettingsError, match=message) as caught:
        read(**values)
    assert "hunter22" not in str(caught.value)
