"""One table for processes, containers and pods: its settings are what nats-server accepts."""

import itertools
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml
from natslab import LabError, auth
from natslab.clusters import plan, server
from natslab.clusters.plan import Operator, Secure, Tls
from natslab.paths import NATS_CONF, ROOT

TWO = {"us-east": 3, "eu-west": 3}
SHAPES = {
    "one cluster": ({"": 3}, "leaf"),
    "leaf links": (TWO, "leaf"),
    "three on leaf links": ({**TWO, "ap-south": 3}, "leaf"),
    "gateways": ({**TWO, "ap-south": 1}, "gateway"),
}


def secure(folder: Path, *, verify: bool = False) -> Secure:
    files = auth.certificates(folder / "tls")
    tls = Tls(files.server, files.server_key, files.ca, verify)
    return Secure({"SHOP": "a b", "PAY": '"q$x', "$SYS": "s:@/3"}, tls)


def operator() -> Operator:
    boss, system, shop = auth.Key("operator"), auth.Key("account"), auth.Key("account")
    preload = {
        system.public: auth.account_jwt(boss, system, "SYS"),
        shop.public: auth.account_jwt(boss, shop, "SHOP", jetstream=True),
    }
    return Operator(auth.operator_jwt(boss, system), system.public, preload)


def places(folder: Path, regions: Mapping[str, int], joined: plan.Joined) -> dict[str, plan.Place]:
    uses = plan.uses(regions, joined)
    return {
        "local": plan.local(range(20000, 21000), folder, uses),
        "containers": plan.containers(),
        "pods": plan.pods(),
    }


def refused(node: plan.Planned) -> str:
    """What nats-server says against the settings of this node; "" when it takes them."""
    binary, _ = server.find_server()
    conf = NATS_CONF.with_name(node.conf)
    tried = subprocess.run(
        [binary, "-t", "-c", conf],
        env={**os.environ, **node.settings},
        capture_output=True,
        text=True,
    )
    return "" if tried.returncode == 0 else tried.stdout + tried.stderr


def test_the_settings_of_compose_are_those_of_the_plan() -> None:
    compose = yaml.safe_load((ROOT / "infra" / "compose.yaml").read_text())
    planned = plan.plan({"": 3}, plan.containers())
    assert list(planned.nodes) == ["n1", "n2", "n3"]
    for name, node in planned.nodes.items():
        settings = {**compose["services"][name]["environment"]}
        assert settings.pop("CLUSTER_NAME") in ("natslab", "${COMPOSE_PROJECT_NAME:-natslab}")
        mine = {**node.settings}
        assert mine.pop("CLUSTER_NAME") == "natslab"
        assert settings == mine
        ports = [f"{node.at.told}:4222", f"{node.at.monitor_url.removeprefix('http://')}:8222"]
        assert compose["services"][name]["ports"] == ports
        assert node.conf == "nats.conf"


def test_the_regions_of_compose_are_those_of_the_plan() -> None:
    compose = yaml.safe_load((ROOT / "infra" / "compose.yaml").read_text())["services"]
    planned, doors = plan.container_regions()
    for name, node in planned.nodes.items():
        service = compose[name]
        assert service["environment"] == node.settings
        assert service["command"] == ["-c", f"/etc/nats/{node.conf}"]
        ports = [f"{node.at.told}:4222", f"{node.at.monitor_url.removeprefix('http://')}:8222"]
        assert service["ports"] == ports
        assert service["profiles"] == compose["wan"]["profiles"] == ["regions"]
    told = json.loads((ROOT / "infra" / "wan.json").read_text())
    assert {link: {int(port): to for port, to in door.items()} for link, door in told.items()} == (
        doors
    )


@pytest.mark.servers
@pytest.mark.parametrize("security", ["open", "secure", "mutual TLS", "operator"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("where", ["local", "containers", "pods"])
def test_nats_server_accepts_every_combination(
    tmp_path: Path, where: str, shape: str, security: str
) -> None:
    regions, joined = SHAPES[shape]
    kinds = {
        "open": lambda: None,
        "secure": lambda: secure(tmp_path),
        "mutual TLS": lambda: secure(tmp_path, verify=True),
        "operator": operator,
    }
    place, asked = places(tmp_path, regions, joined)[where], kinds[security]()
    if security == "operator" and len(regions) > 1:
        with pytest.raises(LabError, match="are not planned: use accounts with TLS"):
            plan.plan(regions, place, joined=joined, security=asked)
        return
    planned = plan.plan(regions, place, joined=joined, security=asked)
    # The settings of a region differ in names and ports only: one node of each is enough.
    one_of_each = {node.region: node for node in planned.nodes.values()}
    assert {name: refused(node) for name, node in one_of_each.items()} == dict.fromkeys(regions, "")


def test_a_wrong_setting_is_refused(tmp_path: Path) -> None:
    """Or the test above proves nothing."""
    planned = plan.plan(TWO, places(tmp_path, TWO, "leaf")["local"])
    node = planned.nodes["eu-west-1"]
    node.settings["REMOTES"] = "[{urls: 1}]"
    assert refused(node)
    del node.settings["REMOTES"]
    assert "REMOTES" in refused(node)


def test_names_domains_and_ports(tmp_path: Path) -> None:
    planned = plan.plan(TWO, places(tmp_path, TWO, "leaf")["local"])
    assert planned.regions == {
        "us-east": ["us-east-1", "us-east-2", "us-east-3"],
        "eu-west": ["eu-west-1", "eu-west-2", "eu-west-3"],
    }
    assert planned.hub == "us-east"
    assert {node.settings["DOMAIN"] for node in planned.nodes.values()} == {
        '"us-east"',
        '"eu-west"',
    }
    listens = [
        value
        for node in planned.nodes.values()
        for name, value in node.settings.items()
        if name.endswith("_LISTEN")
    ]
    assert len(listens) == len({*listens}) == 6 * 3 + 3, (
        "nobody shares a port, the hub has leaf ports"
    )
    hub_leafs = [planned.nodes[name].settings["LEAF_LISTEN"] for name in planned.regions["us-east"]]
    for name in planned.regions["eu-west"]:
        remotes = planned.nodes[name].settings["REMOTES"]
        assert [
            address for address in hub_leafs if f"nats://app:app@{address}" in remotes
        ] == hub_leafs
        assert "account: APP" in remotes and "$SYS" not in remotes


def test_a_link_goes_where_it_is_told(tmp_path: Path) -> None:
    planned = plan.plan(TWO, plan.pods(), via=lambda region, node: f"{region}.{node}:1")
    assert (
        'urls: ["nats://app:app@eu-west.us-east-1:1"'
        in planned.nodes["eu-west-2"].settings["REMOTES"]
    )


def test_regions_that_are_born_in_order_dial_the_earlier_ones() -> None:
    three = {"us-east": 3, "eu-west": 1, "ap-south": 1}

    def dialled(*, born_in_order: bool) -> list[list[str]]:
        planned = plan.plan(three, plan.pods(), joined="gateway", born_in_order=born_in_order)
        settings = [planned.nodes[f"{region}-1"].settings["GATEWAYS"] for region in three]
        return [[region for region in three if f"name: {region}," in s] for s in settings]

    assert dialled(born_in_order=True) == [[], ["us-east"], ["us-east", "eu-west"]]
    assert dialled(born_in_order=False) == [[*three]] * 3


@pytest.mark.parametrize(
    ("regions", "said"),
    [
        ({}, "Say how many nodes"),
        ({"us-east": 0, "eu-west": 3}, "Say how many nodes"),
        ({"us east": 3, "eu-west": 3}, "called like us-east, not 'us east'"),
        ({"us.east": 3, "eu-west": 3}, "called like us-east"),
        ({"us-east": 3, "eu-west": 1}, "needs three nodes for a quorum of its own"),
        ({"": 1}, "needs three nodes"),
    ],
)
def test_what_cannot_work_is_refused(regions: dict[str, int], said: str) -> None:
    with pytest.raises(LabError, match=said):
        plan.plan(regions, plan.pods())


def test_gateways_need_three_nodes_in_the_first_region() -> None:
    with pytest.raises(LabError, match="needs three nodes"):
        plan.plan({"us-east": 1, "eu-west": 3}, plan.pods(), joined="gateway")
    assert plan.plan({"us-east": 3, "eu-west": 1}, plan.pods(), joined="gateway")


@pytest.mark.parametrize(
    "name",
    ["plain", "Müller Kurs", "/home/josé", "中文 日本", "it's", 'say "hi"', "a\\b", "$HOME", "#1"],
)
def test_any_folder_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name.strip("/")
    place = plan.local(range(20000, 20100), folder)
    for security in (None, secure(folder)):
        planned = plan.plan({"": 3}, place, security=security)
        assert refused(planned.nodes["n1"]) == ""
    assert len(list(itertools.chain(folder.rglob("*.pem")))) == 5
