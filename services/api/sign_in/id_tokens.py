"""ID tokens: who signed them, for whom, for which sign-in, and until when."""

from collections.abc import Mapping
from typing import Any

from authlib.oidc.core import CodeIDToken
from joserfc import jwt
from joserfc.errors import BadSignatureError, InvalidKeyCurveError, InvalidKeyIdError, JoseError, KeyParameterError
from joserfc.jwk import KeySet
from joserfc.jws import JWSRegistry

LEEWAY_SECONDS = 60  # by which clocks may differ
# Signatures by a private key alone. With HS256 the client's secret would sign, or, where a library takes any key for
# it, the provider's public one; `none` signs nothing. What a provider says that it supports does not widen this.
ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "Ed25519")
_MOST_SUBJECT = 255
# A key may be changed under its name, also to one of another kind.
_OTHER_KEY = (InvalidKeyIdError, BadSignatureError, InvalidKeyCurveError, KeyParameterError)
_REGISTRY = JWSRegistry(algorithms=ALGORITHMS, strict_check_header=False)


class UnknownKeyError(Exception):
    """The token is signed with a key that is not among those at hand: the provider may have changed its keys."""


class InvalidTokenError(Exception):
    """The token is not one that the provider made for this service and this sign-in; the message has no secret."""


def key_set(document: Mapping[str, Any]) -> KeySet:
    """Return the keys that a provider publishes, without those that cannot be read, or are not for signatures.

    Raises:
        InvalidTokenError: There is none.
    """
    found = document.get("keys")
    keys = []
    for data in found if isinstance(found, list) else ():
        if isinstance(data, dict) and data.get("kty") in ("RSA", "EC", "OKP") and data.get("use", "sig") == "sig":
            try:
                keys += KeySet.import_key_set({"keys": [data]}).keys
            except (JoseError, ValueError, TypeError, KeyError):
                continue
    if not keys:
        raise InvalidTokenError("the provider publishes no key that verifies signatures")
    return KeySet(keys)


def verified_claims(
    token: str, keys: KeySet, *, issuer: str, client_id: str, nonce: str, access_token: str | None
) -> dict[str, Any]:
    """Return the claims of an ID token, after checking signature, issuer, audience, times, nonce and access token.

    Args:
        token: The token, as the token endpoint has returned it.
        keys: Keys of the provider.
        issuer: Who must have made it.
        client_id: For whom it must be.
        nonce: For which sign-in.
        access_token: What came with it, whose hash it may contain.

    Raises:
        UnknownKeyError: None of the keys fits.
        InvalidTokenError: It breaks any other rule.
    """
    try:
        decoded = jwt.decode(token, keys, registry=_REGISTRY)
        claims = CodeIDToken(
            decoded.claims,
            decoded.header,
            options={
                "iss": {"essential": True, "value": issuer},
                "aud": {"essential": True, "value": client_id},
                "sub": {"essential": True},
            },
            params={"nonce": nonce, "client_id": client_id, "access_token": access_token},
        )
        claims.validate(leeway=LEEWAY_SECONDS)
    except _OTHER_KEY as error:
        raise UnknownKeyError(type(error).__name__) from None
    except JoseError as error:
        raise InvalidTokenError(f"{type(error).__name__}: {error.error}") from None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:  # a token that is no token
        raise InvalidTokenError(type(error).__name__) from None
    subject = claims["sub"]
    if not (0 < len(subject) <= _MOST_SUBJECT and subject.isascii() and subject.isprintable()):
        raise InvalidTokenError(f"the subject must have 1 to {_MOST_SUBJECT} ASCII characters")
    return dict(claims)
