"""A real Prometheus for a lesson: found, started, asked, and gone with the kernel.

It runs with the files of `infra/prometheus` on a port of 127.0.0.1, in a folder of its own that a
`keeper` cleans up. Or it is one that runs already, named by $PROMETHEUS_URL, such as the container
in `infra/compose.yaml`.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd

from natslab.clusters import keeper
from natslab.clusters.ports import reserved_ports
from natslab.errors import LabError
from natslab.paths import CACHE, ROOT

CONFIG = ROOT / "infra" / "prometheus"
START_DEADLINE = 15.0
MISSING = (
    "There is no Prometheus here, so its part of the lesson is left out: install one "
    "(Debian, Ubuntu: sudo apt install prometheus; macOS: brew install prometheus)."
)


def free_port() -> int:
    """A loopback port for a target: nobody listens there now, and no lab has claimed it."""
    labs = CACHE / "labs"
    labs.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=labs) as folder, reserved_ports(Path(folder), 1) as ports:
        return ports[0]


class Prometheus:
    """A running Prometheus that scrapes the targets of one lesson.

    >>> prom = await Prometheus.start(["127.0.0.1:9100"])
    >>> await prom.number('sum(rate(requests_total[1m]))')
    """

    _open: Prometheus | None = None  # one per kernel: running the set-up cell again replaces it

    def __init__(self, url: str, targets: Path, claim: keeper.Claim | None = None) -> None:
        self.url = url
        self.version = ""
        self._targets = targets  # the file that lists them
        self._claim = claim  # on the folder of a process of ours
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    async def start(cls, targets: Sequence[str], rules: Path = CONFIG / "rules.yml") -> Prometheus:
        """Start one that scrapes `targets` ("host:port") and evaluates `rules`; or use $PROMETHEUS_URL.

        The first numbers of a target come about five seconds later. Raises LabError when there is
        no Prometheus, or it does not start, in its own words. One that runs already has its own
        rules, so `rules` cannot be chosen there.
        """
        if cls._open is not None:
            cls._open.close()
        if url := os.environ.get("PROMETHEUS_URL"):
            if rules != CONFIG / "rules.yml":
                raise LabError(f"The Prometheus at {url} has its own rules: unset PROMETHEUS_URL.")
            self = cls(url.rstrip("/"), CACHE / "prometheus" / f"{uuid.uuid4().hex}.json")
        elif shutil.which("prometheus"):
            claim = keeper.claim(CACHE / "labs")
            self = cls("", claim.folder / "targets" / "lesson.json", claim)
        else:
            raise LabError(MISSING)
        try:
            self._targets.parent.mkdir(parents=True, exist_ok=True)
            new = self._targets.with_suffix(".new")
            new.write_text(json.dumps([{"targets": list(targets)}]))
            new.replace(self._targets)  # one that runs already never reads half of it
            if self._claim is not None:
                self._launch(self._claim.folder, rules)
            await self._ready()
        except BaseException:
            self.close()  # an interrupt too: nothing may be left
            raise
        cls._open = self
        return self

    # What a lesson asks. Each raises LabError with Prometheus' own words when it says no.
    async def query(self, promql: str) -> pd.DataFrame:
        """The result of a PromQL expression now: one row per series, its labels and its `value`."""
        data = await self._get("query", query=promql)
        if data["resultType"] == "scalar":
            return pd.DataFrame({"value": [float(data["result"][1])]})
        found = [{**row["metric"], "value": float(row["value"][1])} for row in data["result"]]
        return pd.DataFrame(found) if found else pd.DataFrame({"value": []}, dtype=float)

    async def number(self, promql: str) -> float:
        """The value of an expression with one result, such as a `sum`; nan when it has none."""
        values = list((await self.query(promql)).value)
        if len(values) > 1:
            raise LabError(f"{promql} has {len(values)} results: sum them, or use query.")
        return float(values[0]) if values else float("nan")

    async def over_time(
        self, promql: str, start: float, end: float, step: float = 0.25
    ) -> pd.DataFrame:
        """The expression at every step from `start` to `end` (`time.time()`): columns t, value, labels."""
        data = await self._get("query_range", query=promql, start=start, end=end, step=step)
        found = [
            {**row["metric"], "t": float(t), "value": float(value)}
            for row in data["result"]
            for t, value in row["values"]
        ]
        return pd.DataFrame(found) if found else pd.DataFrame({"t": [], "value": []}, dtype=float)

    async def alerts(self) -> list[dict[str, str]]:
        """The alerts that are pending or firing now: their labels (`alertname`, ...) and `state`."""
        data = await self._get("alerts")
        return [{**alert["labels"], "state": alert["state"]} for alert in data["alerts"]]

    def close(self) -> None:
        """End the process and delete its data; one that was there before stays, without our targets."""
        if Prometheus._open is self:
            Prometheus._open = None
        self._targets.unlink(missing_ok=True)
        if self._claim is not None:
            self._claim.release()
        if self._process is not None:
            self._process.wait(10)

    def _launch(self, folder: Path, rules: Path) -> None:
        shutil.copy(CONFIG / "prometheus.yml", folder)
        shutil.copy(rules, folder / "rules.yml")
        with reserved_ports(folder, 1) as (port,), (folder / "log").open("wb") as log:
            self.url = f"http://127.0.0.1:{port}"
            command = ["prometheus", f"--web.listen-address=127.0.0.1:{port}", "--log.level=warn"]
            files = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
            # A session of its own: "interrupt kernel" signals the whole group of the kernel.
            self._process = subprocess.Popen(
                [*command, *files], stdout=log, stderr=log, start_new_session=True
            )

    async def _ready(self) -> None:
        end = time.monotonic() + START_DEADLINE
        while not self.version:
            if self._process and self._process.poll() is not None:
                log = (self._targets.parents[1] / "log").read_text(errors="replace")
                last = "\n".join(log.strip().splitlines()[-5:])
                raise LabError(f"Prometheus did not start: {last or 'it said nothing'}")
            try:
                self.version = (await self._get("status/buildinfo"))["version"]
            except (OSError, ValueError) as error:  # no answer, or "Service Unavailable"
                if time.monotonic() > end:
                    raise LabError(f"Prometheus does not answer ({self.url}): {error}") from None
                await asyncio.sleep(0.02)

    async def _get(self, path: str, **parameters: Any) -> dict[str, Any]:
        def answer() -> dict[str, Any]:
            try:
                with urllib.request.urlopen(url, timeout=5) as page:
                    return dict(json.load(page))
            except urllib.error.HTTPError as error:  # a 400 has a body that says what is wrong
                return dict(json.load(error))

        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        said = await asyncio.to_thread(answer)
        if said.get("status") != "success":
            raise LabError(f"Prometheus says: {said.get('error', said)}")
        return dict(said["data"])
