"""Settings of signing in with an identity provider: ``NAS_BLOCKOUT_OIDC_*``."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated
from urllib.parse import urlsplit

from services.setting_values import PREFIX, SettingsError, Variable, listed, masked, one_of, page, pairs

OWNER_CLAIMS = ("sub", "preferred_username", "email")
NEW_OWNERS = ("none", "allowed", "anyone")
SCOPES = ("write", "read")
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_MOST_NAME = 60
_OPENID = "openid"
_MORE_SCOPES = "openid profile email"


@dataclass(frozen=True, slots=True)
class SignInSettings:
    """How people sign in to the page with an identity provider that speaks OpenID Connect.

    The representation does not contain the client's secret.
    """

    issuer: Annotated[
        str,
        Variable(
            "NAS_BLOCKOUT_OIDC_ISSUER",
            "Identity provider with which people sign in to the page, by OpenID Connect: the URL that it calls its "
            "issuer, such as `https://accounts.google.com`, below which `.well-known/openid-configuration` lies.",
            "none: the page takes tokens only",
        ),
    ]
    client_id: Annotated[
        str, Variable("NAS_BLOCKOUT_OIDC_CLIENT_ID", "What the provider knows the service by.", "none: needed")
    ]
    client_secret: Annotated[
        str | None,
        Variable(
            "NAS_BLOCKOUT_OIDC_CLIENT_SECRET",
            "Secret of the client; best in a file, which `NAS_BLOCKOUT_OIDC_CLIENT_SECRET_FILE` names.",
            "none: a public client, protected by PKCE alone",
        ),
    ] = field(default=None, repr=False)
    redirect_url: Annotated[
        str | None,
        Variable(
            "NAS_BLOCKOUT_OIDC_REDIRECT_URL",
            "Where the provider sends people back, as it is registered there: the address of the page with "
            "`/login/oidc/callback`.",
            "made from the address that the browser used, as a trusted proxy tells it",
        ),
    ] = None
    name: Annotated[
        str, Variable("NAS_BLOCKOUT_OIDC_NAME", "What the button on the page calls the provider.", "`single sign-on`")
    ] = "single sign-on"
    scopes: Annotated[
        str,
        Variable(
            "NAS_BLOCKOUT_OIDC_SCOPES",
            "What is asked of the provider, separated by blanks; `openid` is always asked for.",
            f"`{_MORE_SCOPES}`",
        ),
    ] = _MORE_SCOPES
    owner_claim: Annotated[
        str,
        Variable(
            "NAS_BLOCKOUT_OIDC_OWNER_CLAIM",
            "Claim from which the name of a new owner is made: `sub`, `preferred_username` or `email`, the last only "
            "if the provider has verified it. Later sign-ins know the owner by issuer and subject, not by this name.",
            "`sub`",
        ),
    ] = OWNER_CLAIMS[0]
    new_owners: Annotated[
        str,
        Variable(
            "NAS_BLOCKOUT_OIDC_NEW_OWNERS",
            "Who becomes an owner by signing in for the first time: `none` (operators add them with "
            "`nas-blockout person add`), `allowed` (who has an allowed address or group), or `anyone` whom the "
            "provider lets in.",
            "`none`",
        ),
    ] = NEW_OWNERS[0]
    scope: Annotated[
        str,
        Variable("NAS_BLOCKOUT_OIDC_SCOPE", "What who signs in may do: `write`, or `read` to look only.", "`write`"),
    ] = SCOPES[0]
    email_domains: Annotated[
        tuple[str, ...],
        Variable(
            "NAS_BLOCKOUT_OIDC_EMAIL_DOMAINS",
            "Domains, such as `example.org,example.com`: who signs in must have a verified address in one of them.",
            "any, or none at all",
        ),
    ] = ()
    groups_claim: Annotated[
        str,
        Variable(
            "NAS_BLOCKOUT_OIDC_GROUPS_CLAIM",
            "Claim that lists the groups of who signs in; dots lead into objects, as in `realm_access.roles`.",
            "`groups`",
        ),
    ] = "groups"
    groups: Annotated[
        tuple[str, ...],
        Variable(
            "NAS_BLOCKOUT_OIDC_GROUPS",
            "Groups, separated by commas: who signs in must be in one of them.",
            "any, or none at all",
        ),
    ] = ()
    administrators: Annotated[
        tuple[tuple[str, str], ...],
        Variable(
            "NAS_BLOCKOUT_OIDC_ADMINISTRATORS",
            "Claims with values that make an administrator, such as `groups=operators,realm_access.roles=admin`.",
            "nobody is one by signing in",
        ),
    ] = ()
    teams: Annotated[
        tuple[tuple[str, str], ...],
        Variable(
            "NAS_BLOCKOUT_OIDC_TEAMS",
            "Teams with the group that each follows, such as `vision=/research/vision`: at every sign-in the owner "
            "joins or leaves them.",
            "teams are those of `nas-blockout team`",
        ),
    ] = ()


def read(values: Mapping[str, str]) -> SignInSettings | None:
    """Return the settings of signing in, or None without an issuer.

    Args:
        values: Variables by name.

    Raises:
        SettingsError: One of them is invalid, or is needed by another.
    """
    issuer, client_id = (values.get(f"{PREFIX}OIDC_{name}", "").strip() for name in ("ISSUER", "CLIENT_ID"))
    if not issuer:
        if client_id:
            raise SettingsError(f"{PREFIX}OIDC_ISSUER is not set, but {PREFIX}OIDC_CLIENT_ID is; set both or neither")
        return None
    if not client_id:
        raise SettingsError(f"{PREFIX}OIDC_CLIENT_ID is not set; it is what {masked(issuer)} knows the service by")
    found = SignInSettings(
        issuer=_issuer(issuer),
        client_id=client_id,
        client_secret=values.get(PREFIX + "OIDC_CLIENT_SECRET", "").strip() or None,
        redirect_url=page(values, "OIDC_REDIRECT_URL"),
        name=_name(values.get(PREFIX + "OIDC_NAME", "")),
        scopes=_scopes(values.get(PREFIX + "OIDC_SCOPES", "")),
        owner_claim=one_of(values, "OIDC_OWNER_CLAIM", OWNER_CLAIMS),
        new_owners=one_of(values, "OIDC_NEW_OWNERS", NEW_OWNERS),
        scope=one_of(values, "OIDC_SCOPE", SCOPES),
        email_domains=tuple(domain.lower() for domain in listed(values, "OIDC_EMAIL_DOMAINS")),
        groups_claim=values.get(PREFIX + "OIDC_GROUPS_CLAIM", "").strip() or "groups",
        groups=listed(values, "OIDC_GROUPS"),
        administrators=pairs(values, "OIDC_ADMINISTRATORS", "groups=operators"),
        teams=pairs(values, "OIDC_TEAMS", "vision=/research/vision"),
    )
    _require_sense(found)
    return found


def _issuer(text: str) -> str:
    """Return the issuer as it is written: providers sign that very text, with or without a slash at its end."""
    name = f"{PREFIX}OIDC_ISSUER"
    if not re.fullmatch(r"https?://[^\s/?#@]+[^\s?#@]*", text):
        raise SettingsError(f"{name} must be a URL such as https://sso.example.org, got {masked(text)!r}")
    if text.startswith("http://") and urlsplit(text).hostname not in LOOPBACK:
        raise SettingsError(
            f"{name} must begin with https://, but on this machine itself: whoever is between could sign in as "
            f"anybody; got {text!r}"
        )
    return text


def _name(text: str) -> str:
    name = text.strip() or "single sign-on"
    if len(name) > _MOST_NAME or not name.isprintable():
        raise SettingsError(f"{PREFIX}OIDC_NAME must have up to {_MOST_NAME} printable characters, got {name[:80]!r}")
    return name


def _scopes(text: str) -> str:
    scopes = text.split() or _MORE_SCOPES.split()
    return " ".join(scopes if _OPENID in scopes else [_OPENID, *scopes])


def _require_sense(found: SignInSettings) -> None:
    for domain in found.email_domains:
        if not re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", domain):
            raise SettingsError(f"{PREFIX}OIDC_EMAIL_DOMAINS must be domains such as example.org, got {domain[:80]!r}")
    if found.new_owners == "allowed" and not found.email_domains and not found.groups:
        raise SettingsError(
            f"{PREFIX}OIDC_NEW_OWNERS is allowed, but nobody is: set {PREFIX}OIDC_EMAIL_DOMAINS or "
            f"{PREFIX}OIDC_GROUPS; anyone lets everybody in whom the provider knows"
        )
    teams = [team for team, _ in found.teams]
    if len(set(teams)) < len(teams):
        raise SettingsError(f"{PREFIX}OIDC_TEAMS must name each team once, got {', '.join(teams)[:80]}")
    for team in teams:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}", team):
            raise SettingsError(
                f"{PREFIX}OIDC_TEAMS: a team has 1 to 64 letters, digits and . _ @ -, got {team[:80]!r}"
            )
