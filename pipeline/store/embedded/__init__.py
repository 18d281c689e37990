"""catvec's own PostgreSQL, for those who have none: started, shared and stopped below CATVEC_HOME.

    manager.lock   held while somebody starts or stops the server
    users/         one locked file per process that uses the server; the last to leave stops it
    alive.lock     held by every process of the server
    server.json    port, socket folder and passwords (0600)
    server.log     what the server says
    data/          the cluster, owned by the user that the server runs as
    run/           the socket, unless its path would be too long: then a private folder below /tmp
    runtime/       the programs, where that user cannot reach the installed ones

`server` is who may do what when, `cluster` does it.
"""

from __future__ import annotations

from pipeline.store.embedded.server import EmbeddedServer, ServerStatus, default_home, lease

__all__ = ["EmbeddedServer", "ServerStatus", "default_home", "lease"]
