"""The HTTP API and the web page: they queue and show studies, which a worker runs. The sole importer of fastapi.

`app` assembles the application. Routes: `studies`, `study_files`, `web`, `health`. Below them: `auth` and `sessions`
(authentication), `errors`, `event_stream`, `metrics`, `schemas` (of requests and responses), `state` (shared by the
routes); `requests` (limits and headers of every request); `caches` (so that many clients cost few queries).
"""

from services.api.app import application, description, run

__all__ = ["application", "description", "run"]
