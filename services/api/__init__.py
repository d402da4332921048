"""The HTTP API and the page: they queue studies and show them; a worker runs them. The sole importer of fastapi.

`app` puts it together. Routes: `studies`, `study_files`, `web`, `health`. Below them: `auth` and `sessions` (who may do
what), `errors` (of one shape), `event_stream`, `metrics`, `schemas` (of requests and answers), `state` (what the routes
share); in rooms of their own `requests` (limits around every request) and `caches` (so that many callers cost little).
"""

from services.api.app import application, description, run

__all__ = ["application", "description", "run"]
