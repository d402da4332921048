"""What the routes share: the store, the limits, the keys that sign, what was counted."""

from dataclasses import dataclass, field

from fastapi import Request

from services.api.caches.list_cache import Lists
from services.api.caches.status_cache import Watcher
from services.api.caches.token_cache import Callers
from services.api.event_stream import Feeds
from services.api.health import Probes
from services.api.metrics import Metrics
from services.api.requests.rate_limit import Buckets, Streams
from services.api.sessions import Signer
from services.settings import Settings
from services.store import Store


@dataclass(frozen=True, slots=True)
class Service:
    """One running service.

    Args:
        settings: Of the installation; `api_token` is set.
        store: Holds queue, tokens and studies.
        probes: Ask what the service needs.
    """

    settings: Settings
    store: Store
    probes: Probes
    signer: Signer
    callers: Callers
    buckets: Buckets
    watcher: Watcher
    feeds: Feeds
    lists: Lists = field(default_factory=Lists)
    streams: Streams = field(default_factory=Streams)
    metrics: Metrics = field(default_factory=Metrics)


def make_service(settings: Settings, store: Store, probes: Probes) -> Service:
    """Return a service with the limits and keys of its settings."""
    secret = settings.api_token
    if secret is None:
        raise ValueError("the service needs NAS_BLOCKOUT_API_TOKEN")
    buckets, watcher = Buckets(settings.api_rate), Watcher(store)
    return Service(settings, store, probes, Signer(secret), Callers(store, secret), buckets, watcher, Feeds(watcher))


def service_of(request: Request) -> Service:
    """Return the service that a request has come to."""
    service: Service = request.app.state.service
    return service
