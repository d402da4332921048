"""What follows from the claims of who signs in: whether they may, as which owner, with what scope, in which teams."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from services.api.errors import RequestError
from services.settings import SignInSettings
from services.store import Identity

_MOST_OWNER = 64
_HASH_CHARACTERS = 12
_OWNER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_NOT_IN_OWNERS = re.compile(r"[^A-Za-z0-9._-]+")
_TRUE = (True, "true")  # the latter is what some providers write


def identity_of(claims: Mapping[str, Any]) -> Identity:
    """Return who somebody is, of verified claims."""
    return Identity(claims["iss"], claims["sub"])


def require_allowed(claims: Mapping[str, Any], settings: SignInSettings) -> None:
    """Refuse who has none of the allowed addresses, or is in none of the allowed groups.

    Raises:
        RequestError: It is so.
    """
    if settings.email_domains:
        email = _verified_email(claims)
        if email is None:
            raise refusal("unverified", f"{settings.name} names no address of yours that it has verified")
        if email.rpartition("@")[2] not in settings.email_domains:
            raise refusal("not_allowed", f"{email} is in none of the domains that may sign in here")
    if settings.groups and not _values(claims, settings.groups_claim) & set(settings.groups):
        raise refusal("not_allowed", "you are in none of the groups that may sign in here")


def scope_of(claims: Mapping[str, Any], settings: SignInSettings) -> str:
    """Return the scope that somebody gets: ``read``, ``write`` or ``admin``."""
    administers = any(value in _values(claims, claim) for claim, value in settings.administrators)
    return "admin" if administers else settings.scope


def teams_of(claims: Mapping[str, Any], settings: SignInSettings) -> dict[str, bool]:
    """Return, for every team that follows a group, whether somebody belongs to it."""
    groups = _values(claims, settings.groups_claim)
    return {team: group in groups for team, group in settings.teams}


def new_owner(claims: Mapping[str, Any], settings: SignInSettings) -> str:
    """Return the name of the owner whom somebody becomes by signing in for the first time.

    Raises:
        RequestError: Nobody becomes one, or the claim for the name is missing or not verified.
    """
    if settings.new_owners == "none":
        raise refusal("unknown_person", f"you are not known here; tell an operator your ID: {claims['sub']}")
    claim = settings.owner_claim
    if claim == "sub":
        return _mapped(claims["sub"], identity_of(claims))
    email = _verified_email(claims)
    if claim == "email":
        if email is None:
            raise refusal("unverified", f"{settings.name} names no address of yours that it has verified")
        return _fitting(email)
    name = claims.get(claim)
    if not isinstance(name, str) or not name:
        raise refusal("unverified", f"{settings.name} does not say what you are called")
    if "@" in name and name.lower() != email:  # nobody is to look like the owner of an address that is another's
        raise refusal("unverified", f"{settings.name} has not verified that {name[:80]!r} is your address")
    return _fitting(name.lower()) if "@" in name else _mapped(name.lower(), identity_of(claims))


def refusal(code: str, message: str) -> RequestError:
    """Return the error for somebody whom the provider vouches for, and who may not sign in."""
    return RequestError(403, code, message, remedy="ask an operator of the service")


def _fitting(email: str) -> str:
    """Return an address as the name of an owner; it must not be changed, since it would be another's."""
    if len(email) > _MOST_OWNER or not re.fullmatch(r"[a-z0-9][a-z0-9._-]*@[a-z0-9._-]+", email):
        raise refusal("unverified", f"{email[:80]!r} cannot be the name of an owner")
    return email


def _mapped(text: str, identity: Identity) -> str:
    """Return a text as the name of an owner: itself where it is one, else with a hash of the identity at its end."""
    if len(text) <= _MOST_OWNER and _OWNER.fullmatch(text):
        return text
    hashed = hashlib.sha256(f"{identity.issuer}\0{identity.subject}".encode()).hexdigest()[:_HASH_CHARACTERS]
    plain = _NOT_IN_OWNERS.sub("-", text).strip("._-")[: _MOST_OWNER - _HASH_CHARACTERS - 1]
    return f"{plain}-{hashed}" if plain else hashed


def _verified_email(claims: Mapping[str, Any]) -> str | None:
    """Return the address of somebody in lower case, or None without one that the provider has verified."""
    email = claims.get("email")
    if not isinstance(email, str) or claims.get("email_verified") not in _TRUE:
        return None
    local, at, domain = email.lower().rpartition("@")
    return f"{local}@{domain}" if at and local and domain else None


def _values(claims: Mapping[str, Any], name: str) -> frozenset[str]:
    """Return the texts of a claim, which may be a single one or a list; dots in its name lead into objects."""
    found: Any = claims
    if name in claims:  # a name may have dots itself, such as that of a URL
        found = claims[name]
    else:
        for part in name.split("."):
            found = found.get(part) if isinstance(found, Mapping) else None
    if isinstance(found, str):
        return frozenset({found})
    return frozenset(value for value in found if isinstance(value, str)) if isinstance(found, list) else frozenset()
