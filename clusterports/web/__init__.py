"""The page with the map of ports: an ASGI application. Needs the extra ``web``.

It only reads. One reader of the store serves everybody who looks; see :mod:`clusterports.web._cluster`.
"""

from __future__ import annotations

from clusterports.errors import ClusterPortsError

try:
    import prometheus_client
    import starlette
    import uvicorn
except ImportError as error:
    raise ClusterPortsError(f"web: needs {error.name}: pip install clusterports[web]") from error

from ._access import check_token
from ._app import application

__all__ = ["application", "check_token"]

del prometheus_client, starlette, uvicorn
