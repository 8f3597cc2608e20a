"""A cluster with TLS and two accounts, and signed users: who is let in, and who hears whom."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import helpers
import nats
import pytest
from nats.aio.client import Client, RawCredentials
from nats.errors import NoRespondersError
from natslab import Lab, auth, settled, until
from natslab.auth import Key
from natslab.clusters import plan, server
from natslab.clusters.connect import _opened
from natslab.clusters.plan import Operator, Secure, Tls
from natslab.clusters.ports import reserve_ports
from natslab.paths import NATS_CONF

pytestmark = pytest.mark.servers
ONCE = {"allow_reconnect": False, "max_reconnect_attempts": 1, "reconnect_time_wait": 0.05}


@pytest.fixture
async def locked(cache: Path) -> AsyncIterator[Lab]:
    lab = await Lab.start(kind="embedded", secure=True, quiet=True)
    yield lab
    await lab.close(quiet=True)
    assert helpers.nothing_left(cache)


async def quiet(error: Exception) -> None:
    """Errors of connections that are refused on purpose."""


async def refusal(**options: object) -> str:
    """What the client is told when it is not let in."""
    try:
        nc = await _opened({**options, **ONCE, "error_cb": quiet})
    except (OSError, nats.errors.Error) as error:
        return f"{type(error).__name__} {error}"
    await nc.close()
    raise AssertionError("it was let in")


async def test_tls_and_log_in(locked: Lab) -> None:
    nc = await nats.connect(**locked.options)
    cipher = nc._transport._io_writer.get_extra_info("cipher")
    assert cipher and cipher[1] == "TLSv1.3"
    await nc.jetstream().add_stream(name="S", subjects=["s"], num_replicas=3)
    await settled(nc, "s")
    assert (await nc.jetstream().publish("s", b"")).seq == 1
    assert locked.node_of(nc) in locked.nodes
    here = await nats.connect(**locked.other_server(nc))
    assert locked.node_of(here) not in (locked.node_of(nc), None)
    await here.close()
    await nc.close()
    assert json.loads(json.dumps(locked.address)) == locked.address, "it can cross to a process"


async def test_plain_text_is_refused(locked: Lab) -> None:
    at = urlsplit(locked.address["servers"][0])
    reader, writer = await asyncio.open_connection(at.hostname, at.port)
    assert json.loads((await reader.readline()).removeprefix(b"INFO "))["tls_required"]
    log_in = json.dumps({"user": "shop", "pass": locked.address["password"], "verbose": False})
    writer.write(f"CONNECT {log_in}\r\nPING\r\n".encode())
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
        answer = await asyncio.wait_for(reader.readuntil(b"PONG"), 5)
        raise AssertionError(f"it answered {answer!r}")
    writer.close()


async def test_an_authority_that_is_not_known_is_refused(locked: Lab, tmp_path: Path) -> None:
    foreign = auth.certificates(tmp_path / "foreign")
    for context in (ssl.create_default_context(), foreign.context()):
        assert "SSLCertVerificationError" in await refusal(**{**locked.options, "tls": context})


@pytest.mark.parametrize(
    "wrong", [{"password": "wrong"}, {"user": "pay"}, {"user": "nobody"}, {"password": ""}]
)
async def test_a_wrong_log_in_is_refused(locked: Lab, wrong: dict) -> None:
    assert "Authorization Violation" in await refusal(**{**locked.options, **wrong})


async def test_nobody_gets_in_without_a_log_in(locked: Lab) -> None:
    options = {k: v for k, v in locked.options.items() if k not in ("user", "password")}
    assert "Authorization Violation" in await refusal(**options)


async def test_an_account_does_not_hear_the_other(locked: Lab) -> None:
    one = {"servers": locked.options["servers"][:1]}  # what one server has heard, it has passed on
    shop = await nats.connect(**{**locked.accounts["SHOP"].options, **one})
    pay = await nats.connect(**{**locked.accounts["PAY"].options, **one})
    all_of_pay, all_of_shop = await pay.subscribe(">"), await shop.subscribe("secret")
    await pay.flush()
    await shop.flush()
    await shop.publish("secret", b"for SHOP only")
    assert (await all_of_shop.next_msg(timeout=2)).data == b"for SHOP only"
    # What PAY says itself comes after all that it could have heard.
    await until(lambda: hears_itself(pay, all_of_pay), 5)
    await all_of_pay.unsubscribe()
    with pytest.raises(NoRespondersError):
        await pay.request("secret", b"")

    for nc in (shop, pay):  # the same name in both, and two streams
        await nc.jetstream().add_stream(name="S", subjects=["s"])
    await settled(shop, "s")
    await shop.jetstream().publish("s", b"")
    assert (await shop.jetstream().stream_info("S")).state.messages == 1
    assert (await pay.jetstream().stream_info("S")).state.messages == 0
    for nc in (shop, pay):
        await nc.close()


async def hears_itself(pay: Client, heard: nats.aio.subscription.Subscription) -> bool:
    await pay.publish("own", b"")
    assert (await heard.next_msg(timeout=2)).subject == "own"
    return True


async def test_verbs_and_monitoring_work(locked: Lab) -> None:
    nc = await nats.connect(**locked.options)
    await nc.jetstream().add_stream(name="S", subjects=["s"], num_replicas=3)
    leader = await locked.leader_of("S")
    assert [node["name"] for node in await locked.view() if "S" in node["leads"]] == [leader]
    await locked.kill(leader)
    assert await locked.leader_of("S") != leader
    await locked.restart(leader)
    await locked.wait_until_healthy()
    await nc.close()
    system = await nats.connect(**locked.accounts["$SYS"].options)
    answer = json.loads((await system.request("$SYS.REQ.SERVER.PING", b"")).data)
    assert answer["server"]["name"] in locked.nodes
    await system.close()


async def speak(options: dict, ca: str) -> None:
    import ssl

    import nats

    context = ssl.create_default_context(cafile=ca)
    nc = await nats.connect(**options, tls=context)
    await nc.publish("spoken", b"")
    await nc.close()


async def test_a_worker_gets_in_with_the_address_and_the_authority(locked: Lab) -> None:
    nc = await nats.connect(**locked.options)
    heard = await nc.subscribe("spoken")
    await nc.flush()
    await nc.flush()
    locked.spawn(speak, "speaker", locked.address, str(locked.certificates.ca))
    assert (await heard.next_msg(timeout=15)).subject == "spoken"
    await nc.close()


async def test_the_reader_is_told_of_the_other_cluster(
    external: dict, cache: Path, capsys: pytest.CaptureFixture
) -> None:
    lab = await Lab.start(secure=True)
    await lab.close(quiet=True)
    assert capsys.readouterr().out.startswith(
        "lab ready: 3 nodes, JetStream on (embedded: the external cluster has no TLS and accounts)\n"
    )


# Three servers, as the plan makes them.
@contextmanager
def running(folder: Path, security: Secure | Operator) -> Iterator[list[str]]:
    """A cluster; the addresses of its nodes."""
    (folder / "lab").mkdir()
    ports = reserve_ports(folder / "lab", 9)
    place = plan.local(ports, folder / "lab", plan.uses({"": 3}, "leaf"))
    nodes = plan.plan({"": 3}, place, security=security).nodes.values()
    binary, _ = server.find_server()
    started = [
        server.launch(binary, node.settings, folder, NATS_CONF.with_name(node.conf))
        for node in nodes
    ]
    logs = [folder / f"{node.name}.log" for node in nodes]
    try:
        for log in logs:
            helpers.until(lambda log=log: "Server is ready" in log.read_text(), 10, log.name)
        yield [node.at.told for node in nodes]
    finally:
        for process in started:
            process.kill()
            process.wait()


async def test_mutual_tls(tmp_path: Path) -> None:
    files = auth.certificates(tmp_path / "tls")
    passwords = dict.fromkeys(("SHOP", "PAY", "$SYS"), "pw")
    secure = Secure(passwords, Tls(files.server, files.server_key, files.ca, verify=True))
    with running(tmp_path, secure) as addresses:
        log_in = {"servers": [f"tls://{addresses[0]}"], "user": "shop", "password": "pw"}
        nc = await nats.connect(**log_in, tls=files.context(client=True))
        assert nc.is_connected
        await nc.close()
        assert await refusal(**log_in, tls=files.context()), "no certificate of its own"
        foreign = auth.certificates(tmp_path / "foreign").context(client=True)
        foreign.load_verify_locations(files.ca)
        assert await refusal(**log_in, tls=foreign), "a certificate of another authority"


async def test_a_signed_user_is_let_in_and_a_stolen_one_is_not(tmp_path: Path) -> None:
    boss, system, shop, pay = Key("operator"), Key("account"), Key("account"), Key("account")
    preload = {
        system.public: auth.account_jwt(boss, system, "SYS"),
        shop.public: auth.account_jwt(boss, shop, "SHOP", jetstream=True),
        pay.public: auth.account_jwt(boss, pay, "PAY", limits={"conn": 1}),
    }

    def creds(jwt: str, key: Key) -> dict:
        return {"user_credentials": RawCredentials(auth.creds(jwt, key.seed))}

    ann, eve = Key("user"), Key("user")
    jwt = auth.user_jwt(shop, ann, "ann")
    asked = Operator(auth.operator_jwt(boss, system), system.public, preload)
    with running(tmp_path, asked) as addresses:
        where = {"servers": [f"nats://{addresses[0]}"], "error_cb": quiet}
        nc = await nats.connect(**where, **creds(jwt, ann))
        await until(lambda: makes_a_stream(nc), 15, "JetStream of a server that has just started")
        await settled(nc, "s")
        assert (await nc.jetstream().publish("s", b"")).seq == 1
        await nc.close()
        file = tmp_path / "ann.creds"
        file.write_text(auth.creds(jwt, ann.seed))
        nc = await nats.connect(**where, user_credentials=str(file))
        await nc.close()

        violation = "Authorization Violation"
        assert violation in await refusal(**where)
        assert violation in await refusal(**where, **creds(jwt, eve)), "stolen, with another seed"
        forged = auth.user_jwt(Key("account"), eve, "eve")
        assert violation in await refusal(**where, **creds(forged, eve)), "an unknown account"
        head, _, signature = jwt.split(".")
        other = auth.user_jwt(shop, eve, "eve").split(".")[1]
        assert violation in await refusal(**where, **creds(f"{head}.{other}.{signature}", eve))
        late = auth.user_jwt(shop, ann, "ann", expires=1)
        assert violation in await refusal(**where, **creds(late, ann)), "expired"

        # Rights: what is allowed and nothing else; an empty list allows nothing.
        errors: list[str] = []

        async def note(error: Exception) -> None:
            errors.append(str(error))

        jwt = auth.user_jwt(shop, ann, "ann", publish=["orders.*"], subscribe=[])
        nc = await nats.connect(**{**where, "error_cb": note}, **creds(jwt, ann))
        for subject in ("orders.1", "payroll"):
            await nc.publish(subject, b"")
        await nc.subscribe("orders.*")
        await nc.flush()
        await until(lambda: len(errors) == 2, 5)
        assert 'publish to "payroll"' in errors[0]
        assert 'subscription to "orders.*"' in errors[1]
        await nc.close()


async def makes_a_stream(nc: Client) -> bool:
    try:
        await nc.jetstream(timeout=0.5).add_stream(name="S", subjects=["s"])
    except (TimeoutError, nats.errors.Error):
        return False
    return True


def test_certificates_are_private_and_for_this_machine(tmp_path: Path) -> None:
    files = auth.certificates(tmp_path)
    for key in (files.server_key, files.client_key):
        assert key.stat().st_mode & 0o077 == 0
    assert len({file.read_bytes() for file in tmp_path.iterdir()}) == 5
    before = files.ca.read_bytes()
    assert auth.certificates(tmp_path).ca.read_bytes() != before, "a new authority each time"
