"""The identity provider: found by its issuer, asked for who signs in, and told of who signs out."""

import ssl
import time
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, suppress
from typing import Any
from urllib.parse import urlsplit

import httpx
from authlib.oauth2.auth import ClientAuth
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri, prepare_token_request
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from authlib.oidc.discovery import OpenIDProviderMetadata, get_well_known_url
from joserfc.jwk import KeySet

from services.api.sign_in.attempts import Attempt
from services.api.sign_in.id_tokens import InvalidTokenError, UnknownKeyError, key_set, verified_claims
from services.api.sign_in.provider_requests import ProviderError, ProviderRequests, provider_requests
from services.settings import SignInSettings

SECONDS = 10.0  # for all that is asked of a provider while a person waits
FRESH_SECONDS = 3600.0  # age up to which what a provider says of itself is used
_FORM = {"Content-Type": "application/x-www-form-urlencoded"}
_METHODS = ("client_secret_basic", "client_secret_post")
_CLIENT_ERRORS = frozenset({"invalid_client", "unauthorized_client"})


class CodeRefusedError(Exception):
    """The provider does not take the code: it was used before, has expired, or belongs to another sign-in."""


class Provider:
    """One identity provider, by OpenID Connect's authorization code flow with PKCE.

    Authlib makes the requests and checks the ID token; they are sent here, so that all of them have one deadline.

    Args:
        settings: Issuer, client and claims.
        seconds: The deadline of everything that one request of a browser asks of the provider.
    """

    def __init__(self, settings: SignInSettings, *, seconds: float = SECONDS) -> None:
        self.settings = settings
        self._seconds = seconds
        self._known: tuple[float, OpenIDProviderMetadata] | None = None
        self._keys: KeySet | None = None
        self._trust: ssl.SSLContext | None = None

    async def authorization_url(self, attempt: Attempt, redirect_url: str) -> str:
        """Return where a browser goes to sign in.

        Args:
            attempt: The sign-in.
            redirect_url: Where the provider is to send it back.

        Raises:
            ProviderError: The provider cannot be reached, or says of itself what cannot be.
        """
        async with self._requests() as requests:
            metadata = await self._metadata(requests)
        url: str = prepare_grant_uri(
            metadata["authorization_endpoint"],
            client_id=self.settings.client_id,
            response_type="code",
            redirect_uri=redirect_url,
            scope=self.settings.scopes,
            state=attempt.state,
            nonce=attempt.nonce,
            code_challenge=create_s256_code_challenge(attempt.verifier),
            code_challenge_method="S256",
        )
        return url

    async def claims(self, attempt: Attempt, redirect_url: str, *, code: str, issuer: str | None) -> dict[str, Any]:
        """Return the claims of who has signed in, for which the provider vouches.

        Args:
            attempt: The sign-in.
            redirect_url: Where the provider has sent the browser back to.
            code: What it has sent along, to be exchanged for the ID token.
            issuer: Who says it has sent it (RFC 9207), or None.

        Raises:
            ProviderError: The provider cannot be reached, or answers what it must not.
            CodeRefusedError: The provider does not take the code.
            InvalidTokenError: The answer does not come from this provider, or is not for this service and sign-in.
        """
        if not code:
            raise CodeRefusedError("there is none")
        async with self._requests() as requests:
            metadata = await self._metadata(requests)
            required = metadata.get("authorization_response_iss_parameter_supported") is True
            if issuer != self.settings.issuer and (required or issuer is not None):
                raise InvalidTokenError("the answer comes from another issuer than the sign-in went to")
            tokens = await self._exchange(requests, metadata, attempt, redirect_url, code)
            claims = await self._verified(requests, metadata, tokens, attempt.nonce)
            return await self._completed(requests, metadata, tokens, claims)

    async def logout_url(self, back: str) -> str | None:
        """Return where a browser goes to sign out at the provider as well, or None if the provider has no such place.

        Args:
            back: Where the provider may send it afterwards.

        Raises:
            ProviderError: The provider cannot be reached.
        """
        async with self._requests() as requests:
            metadata = await self._metadata(requests)
        endpoint = metadata.get("end_session_endpoint")
        if not isinstance(endpoint, str) or not self._is_safe(endpoint):
            return None
        # Without the ID token as a hint, which would have to be stored: providers ask, or know by their own cookie.
        parameters = {"client_id": self.settings.client_id, "post_logout_redirect_uri": back}
        return str(httpx.URL(endpoint).copy_merge_params(parameters))

    def _requests(self) -> AbstractAsyncContextManager[ProviderRequests]:
        if self._trust is None and self.settings.issuer.startswith("https:"):
            self._trust = httpx.create_ssl_context()  # reading all certificates takes a moment: once
        return provider_requests(self._seconds, self._trust or True)

    async def _metadata(self, requests: ProviderRequests) -> OpenIDProviderMetadata:
        if self._known is not None and time.monotonic() - self._known[0] < FRESH_SECONDS:
            return self._known[1]
        metadata = OpenIDProviderMetadata(await requests.get(get_well_known_url(self.settings.issuer, external=True)))
        if metadata.get("issuer") != self.settings.issuer:
            raise ProviderError(f"{self.settings.issuer} calls itself {str(metadata.get('issuer'))[:200]!r}")
        for name in ("authorization_endpoint", "token_endpoint", "jwks_uri"):
            if not self._is_safe(metadata.get(name)):
                raise ProviderError(f"the provider has no {name} that is a URL with https")
        self._known, self._keys = (time.monotonic(), metadata), None
        return metadata

    def _is_safe(self, url: object) -> bool:
        """Whether a URL uses TLS, as all do but those of a provider on this machine."""
        schemes = ("https",) if self.settings.issuer.startswith("https:") else ("https", "http")
        try:
            return isinstance(url, str) and urlsplit(url).scheme in schemes and bool(urlsplit(url).hostname)
        except ValueError:
            return False

    async def _exchange(
        self,
        requests: ProviderRequests,
        metadata: Mapping[str, Any],
        attempt: Attempt,
        redirect_url: str,
        code: str,
    ) -> dict[str, Any]:
        url = metadata["token_endpoint"]
        body = prepare_token_request(
            "authorization_code", redirect_uri=redirect_url, code=code, code_verifier=attempt.verifier
        )
        client = ClientAuth(self.settings.client_id, self.settings.client_secret, self._method(metadata))
        url, headers, body = client.prepare("POST", url, dict(_FORM), body)
        status, tokens = await requests.post(url, body, headers)
        if status == httpx.codes.OK and isinstance(tokens.get("id_token"), str):
            return tokens
        error = tokens.get("error")
        if status in (httpx.codes.BAD_REQUEST, httpx.codes.UNAUTHORIZED) and isinstance(error, str):
            if error in _CLIENT_ERRORS:
                raise ProviderError(f"the provider does not accept the client: {error}; check its ID and secret")
            raise CodeRefusedError(error[:40] if error.isprintable() else "")
        told = f"the token endpoint answers with status {status} and no ID token"
        raise ProviderError(told, unreachable=status >= httpx.codes.INTERNAL_SERVER_ERROR)

    def _method(self, metadata: Mapping[str, Any]) -> str:
        """Return how the client proves who it is: by the header if the provider knows it, which is the default."""
        if self.settings.client_secret is None:
            return "none"
        known = metadata.get("token_endpoint_auth_methods_supported", _METHODS)
        return next((method for method in _METHODS if method in known), _METHODS[0])

    async def _verified(
        self, requests: ProviderRequests, metadata: Mapping[str, Any], tokens: Mapping[str, Any], nonce: str
    ) -> dict[str, Any]:
        """Return the claims of the ID token; the keys are asked for again if none of those at hand fits."""

        def checked(keys: KeySet) -> dict[str, Any]:
            return verified_claims(
                tokens["id_token"],
                keys,
                issuer=self.settings.issuer,
                client_id=self.settings.client_id,
                nonce=nonce,
                access_token=tokens.get("access_token"),
            )

        if self._keys is not None:
            with suppress(UnknownKeyError):
                return checked(self._keys)
        self._keys = key_set(await requests.get(metadata["jwks_uri"]))
        try:
            return checked(self._keys)
        except UnknownKeyError as error:
            raise InvalidTokenError(f"none of the provider's keys fits: {error}") from None

    async def _completed(
        self,
        requests: ProviderRequests,
        metadata: Mapping[str, Any],
        tokens: Mapping[str, Any],
        claims: dict[str, Any],
    ) -> dict[str, Any]:
        """Return the claims, with those that some providers tell only at their endpoint of user information."""
        url, access_token = metadata.get("userinfo_endpoint"), tokens.get("access_token")
        missing = {name.partition(".")[0] for name in self._needed()} - claims.keys()
        if not missing or not isinstance(access_token, str) or not isinstance(url, str) or not self._is_safe(url):
            return claims
        more = await requests.get(url, bearer=access_token)
        if more.get("sub") != claims["sub"]:  # as OpenID Connect Core, section 5.3.2, demands
            raise InvalidTokenError("the user information is that of somebody else")
        return {**more, **claims}

    def _needed(self) -> set[str]:
        """Return the claims on which something depends."""
        settings = self.settings
        needed = {settings.owner_claim, *(claim for claim, _ in settings.administrators)}
        if settings.email_domains or settings.owner_claim != "sub":
            needed |= {"email", "email_verified"}
        if settings.groups or settings.teams:
            needed.add(settings.groups_claim)
        return needed
