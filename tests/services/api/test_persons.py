"""What follows from the claims of who signs in, claim by claim."""

import re

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from services.api.errors import RequestError
from services.api.sign_in.persons import new_owner, scope_of, teams_of
from services.settings import SignInSettings
from services.store.accounts.tokens import require_owner


def settings_with(**changes: object) -> SignInSettings:
    values = {"issuer": "https://sso.example", "client_id": "c", "new_owners": "anyone", **changes}
    return SignInSettings(**values)  # type: ignore[arg-type]


def claims_with(**changes: object) -> dict[str, object]:
    return {"iss": "https://sso.example", "sub": "s-1", **changes}


@pytest.mark.parametrize(
    ("subject", "name"),
    [
        ("248289761001", "248289761001"),
        ("00uid4BxXw6I6TV4m0g3", "00uid4BxXw6I6TV4m0g3"),
        ("6a5e1c7e-0b1f-4d5e-9a53-0c2b4f5b7a10", "6a5e1c7e-0b1f-4d5e-9a53-0c2b4f5b7a10"),
        ("auth0|5f7c8ec7c33c6c004bbafe82", r"auth0-5f7c8ec7c33c6c004bbafe82-[0-9a-f]{12}"),
        ("ann@example.org", r"ann-example\.org-[0-9a-f]{12}"),  # not a verified address
        ("-ann", r"ann-[0-9a-f]{12}"),
        ("/", r"[0-9a-f]{12}"),
        ("x" * 64, "x{64}"),
        ("x" * 65, r"x{51}-[0-9a-f]{12}"),
    ],
)
def test_a_subject_is_a_name_or_is_made_one(subject, name):
    found = new_owner(claims_with(sub=subject), settings_with())
    assert re.fullmatch(name, found)
    require_owner("owner", found)


@hypothesis_settings(max_examples=200, deadline=None)
@given(st.lists(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=255), unique=True))
def test_names_of_subjects_are_names_of_owners_and_differ(subjects):
    names = [new_owner(claims_with(sub=subject), settings_with()) for subject in subjects]
    for name in names:
        require_owner("owner", name)
    assert len(set(names)) == len(subjects)


def test_the_same_subject_of_two_providers_is_made_two_names():
    names = {new_owner(claims_with(sub="a|b", iss=issuer), settings_with()) for issuer in ("https://a", "https://b")}
    assert len(names) == 2


@pytest.mark.parametrize(
    ("claim", "claims", "name"),
    [
        ("preferred_username", {"preferred_username": "Ann"}, "ann"),
        ("preferred_username", {"preferred_username": "ann b"}, r"ann-b-[0-9a-f]{12}"),
        ("preferred_username", {"preferred_username": "Ä"}, r"[0-9a-f]{12}"),
        (
            "preferred_username",
            {"preferred_username": "Ann@x.org", "email": "ann@x.org", "email_verified": True},
            r"ann@x\.org",
        ),
        ("preferred_username", {"preferred_username": "ann@x.org"}, None),
        (
            "preferred_username",
            {"preferred_username": "bob@x.org", "email": "ann@x.org", "email_verified": True},
            None,
        ),
        ("preferred_username", {}, None),
        ("preferred_username", {"preferred_username": ["ann"]}, None),
        ("email", {"email": "Ann.B@x.org", "email_verified": True}, r"ann\.b@x\.org"),
        ("email", {"email": "ann@x.org", "email_verified": "true"}, r"ann@x\.org"),
        ("email", {"email": "ann@x.org", "email_verified": False}, None),
        ("email", {"email": "ann@x.org", "email_verified": 1.5}, None),
        ("email", {"email": "ann@x.org"}, None),
        ("email", {"email": "ann+b@x.org", "email_verified": True}, None),  # would be a name that is another's address
        ("email", {"email": "a@b@x.org", "email_verified": True}, None),
        ("email", {"email": "@x.org", "email_verified": True}, None),
        ("email", {"email": f"{'a' * 60}@x.org", "email_verified": True}, None),
        ("email", {"email": 3, "email_verified": True}, None),
    ],
)
def test_names_and_addresses_become_owners_only_if_they_are_vouched_for(claim, claims, name):
    settings = settings_with(owner_claim=claim)
    if name is None:
        with pytest.raises(RequestError) as caught:
            new_owner(claims_with(**claims), settings)
        assert (caught.value.status, caught.value.problem.code) == (403, "unverified")
        return
    found = new_owner(claims_with(**claims), settings)
    assert re.fullmatch(name, found)
    require_owner("owner", found)


@pytest.mark.parametrize(
    ("groups", "scope"),
    [
        (["operators"], "admin"),
        ("operators", "admin"),
        (["operator", "operators2"], "write"),
        ({"operators": True}, "write"),
        ([["operators"]], "write"),
        (None, "write"),
        (True, "write"),
    ],
)
def test_a_value_makes_an_administrator_only_if_it_is_the_very_one(groups, scope):
    settings = settings_with(administrators=(("groups", "operators"),))
    assert scope_of(claims_with(groups=groups), settings) == scope


def test_claims_are_found_by_their_name_and_by_a_path():
    settings = settings_with(groups_claim="https://x.org/groups", teams=(("a", "g"), ("b", "h")))
    assert teams_of(claims_with(**{"https://x.org/groups": ["g"]}), settings) == {"a": True, "b": False}
    settings = settings_with(groups_claim="realm_access.roles", teams=(("a", "g"),))
    assert teams_of(claims_with(realm_access={"roles": ["g"]}), settings) == {"a": True}
    for other in ("roles", ["roles"], None, {"role": ["g"]}):
        assert teams_of(claims_with(realm_access=other), settings) == {"a": False}
