"""The HTTP API and the page: they queue studies and show them; a worker runs them. The sole importer of fastapi.

`app` puts it together. Routes: `studies`, `files`, `page`, `health`. Below them: `auth` and `sessions` (who may what),
`reading` (bodies), `refusals` (errors of one shape), `limits`, `progress`, `metrics`, `guard` (around every request),
`models` (what is answered), `service` (what the routes share).
"""

from services.api.app import application, description, run

__all__ = ["application", "description", "run"]
