"""State shared by all routes: the store, caches, rate limits, signing keys and metrics."""

from dataclasses import dataclass

from fastapi import Request

from services.api.caches.list_cache import LIST_SECONDS, Lists
from services.api.caches.status_cache import STATUS_SECONDS, Watcher
from services.api.caches.token_cache import MAX_TOKENS, TOKEN_SECONDS, Callers
from services.api.event_stream import HEARTBEAT_SECONDS, Feeds
from services.api.health import Probes
from services.api.metrics import Metrics
from services.api.requests.rate_limit import Buckets, Streams
from services.api.requests.server_paths import ServerPaths
from services.api.sessions import Sessions
from services.api.sign_in.attempts import Attempts
from services.api.sign_in.provider import Provider
from services.settings import Settings
from services.store import Store


@dataclass(frozen=True, slots=True)
class Caching:
    """How long answers may be reused, so that many clients cost few queries.

    Args:
        list_seconds: Age up to which a list of studies is reused.
        status_seconds: Age up to which the status of a study is reused.
        token_seconds: Age up to which a validated token is trusted, for requests that change nothing.
        max_tokens: Number of validated tokens that are remembered.
        heartbeat_seconds: Time after which an idle event stream sends a comment, and its token is checked again.
    """

    list_seconds: float = LIST_SECONDS
    status_seconds: float = STATUS_SECONDS
    token_seconds: float = TOKEN_SECONDS
    max_tokens: int = MAX_TOKENS
    heartbeat_seconds: float = HEARTBEAT_SECONDS


@dataclass(frozen=True, slots=True)
class Service:
    """One running service.

    Args:
        settings: Settings of the installation; `api_token` must be set.
        store: Holds queue, tokens and studies.
        probes: Readiness checks.
        paths: Hides paths of the server.
        sessions: Opens and ends sessions of the web page.
        attempts: Begins sign-ins, and lets each be used once.
        provider: The identity provider, or None where people have tokens only.
        callers: Authenticates tokens.
        buckets: Rate limits.
        watcher: Status of studies.
        feeds: Event streams.
        lists: Lists of studies.
        streams: Numbers of open event streams.
        metrics: Prometheus metrics.
        heartbeat_seconds: See `Caching`.
    """

    settings: Settings
    store: Store
    probes: Probes
    paths: ServerPaths
    sessions: Sessions
    attempts: Attempts
    provider: Provider | None
    callers: Callers
    buckets: Buckets
    watcher: Watcher
    feeds: Feeds
    lists: Lists
    streams: Streams
    metrics: Metrics
    heartbeat_seconds: float


def make_service(
    settings: Settings,
    store: Store,
    probes: Probes,
    caching: Caching,
    *,
    provider_seconds: float,
    max_streams: int,
) -> Service:
    """Return a service with the limits and keys of its settings."""
    secret = settings.api_token  # checked by `serve api`, but not for whoever builds an application
    if secret is None:
        raise ValueError("the service needs NAS_BLOCKOUT_API_TOKEN")
    paths = ServerPaths(settings)
    watcher = Watcher(store, fresh_seconds=caching.status_seconds, shown=paths.status)
    return Service(
        settings=settings,
        store=store,
        probes=probes,
        paths=paths,
        sessions=Sessions(store, secret),
        attempts=Attempts(store, secret),
        provider=None if settings.sign_in is None else Provider(settings.sign_in, seconds=provider_seconds),
        callers=Callers(store, secret, fresh_seconds=caching.token_seconds, max_tokens=caching.max_tokens),
        buckets=Buckets(settings.api_rate),
        watcher=watcher,
        feeds=Feeds(watcher),
        lists=Lists(fresh_seconds=caching.list_seconds),
        streams=Streams(max_streams),
        metrics=Metrics(),
        heartbeat_seconds=caching.heartbeat_seconds,
    )


def service_of(request: Request) -> Service:
    """Return the service that handles a request."""
    service: Service = request.app.state.service
    return service
