"""Somebody else's servers, which we only talk to."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from typing import Any, ClassVar

import nats.errors
from nats.js.errors import APIError

from natslab.clusters import server
from natslab.clusters.base import Cluster, Node
from natslab.clusters.connect import connect, require_creds, shown
from natslab.errors import LabError


@dataclass
class External(Cluster):
    """Servers named by $NATS_URL, log-in from $NATS_CREDS. We may talk to them, not break them."""

    kind: ClassVar[str] = "external"

    @classmethod
    async def join(cls, urls: list[str], creds: str | None) -> External:
        """Check within 5 s that the servers answer, are new enough and make a replicated stream.

        Raises LabError.
        """
        options: dict[str, Any] = {"servers": urls}
        if creds:
            require_creds(creds)
            options["user_credentials"] = creds
        nc = await connect(options)
        try:
            version = server.version_of(str(nc.connected_server_version))
            if version < server.MIN_VERSION:
                raise LabError(
                    f"The server at {shown(urls[0])} is {'.'.join(map(str, version))}, the course needs 2.12 or newer."
                )
            await nc.jetstream(timeout=2).account_info()
            known = [f"{at.hostname}:{at.port}" for at in nc.servers]
        except (TimeoutError, nats.errors.NoRespondersError, APIError) as error:
            raise LabError(
                f"JetStream does not answer at {shown(urls[0])} ({error or 'timeout'}): "
                "it is off for this account, or the cluster has no quorum."
            ) from None
        finally:
            await nc.close()
        nodes = {f"s{i}": Node(f"s{i}", f"nats://{at}", "") for i, at in enumerate(known, 1)}
        self = cls(nodes=nodes, options=options)
        # A leader that has just lost its followers answers as before for ten seconds or more.
        await self.prove_ready(timeout=2.0)
        return self

    async def _signal(self, node: str, sig: signal.Signals) -> None:
        raise LabError("This cluster is not ours to break (NATS_URL is set).")

    async def _launch(self, node: str) -> None:
        raise LabError("This cluster is not ours to start (NATS_URL is set).")

    async def close(self) -> None:
        """Nothing is held: every call connects for itself."""

    async def view(self) -> list[dict[str, Any]]:
        """The nodes by address only: the monitoring ports of an external cluster are unknown."""
        nobody = {"up": True, "clients": [], "leads": [], "meta_leader": False}
        return [{"name": name, **nobody} for name in self.nodes]

    async def is_healthy(self, node: str) -> bool:
        """Not ours to ask: monitoring ports of an external cluster are unknown."""
        return True
