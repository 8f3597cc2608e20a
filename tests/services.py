"""How each worker of the lessons is started and asked: for each cell tagged `service`, one case.

`args` follow the options for the connection. Bad messages are thrown at the subjects in `poison`.
`good` is a request that is answered after them; a worker of a stream has `works` instead, and its
streams are made by `prepare`.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from nats.js.api import ConsumerConfig, RetentionPolicy
from nats.js.client import JetStreamContext
from natslab import Lab, settled
from natslab.authoring import files
from natslab.clusters import server
from natslab.prometheus import free_port

# A request with nothing in it, some that are no JSON, some that are of another type than it is for.
BAD = [
    b"",
    b"\xff\xfe",
    b"no json {",
    b"null",
    b"[]",
    b'{"a": 1}',
    b'"text"',
    b"-1",
    b"x" * 1_000_000,
]
RULES = {"release": 1, "decimals": {"EUR": 2, "USD": 2, "JPY": 0}}
CHARGE = "INSERT INTO charges VALUES (?)"
ORDER = b'{"id": "A-1", "items": [["item 0", 1299]]}'


@dataclass(frozen=True)
class Case:
    """One worker."""

    lesson: int
    worker: str
    args: tuple[Any, ...] = ()  # "{folder}" in a text stands for the folder of the lab
    poison: tuple[str, ...] = ()
    good: tuple[str, bytes] | None = None
    prepare: Callable[[JetStreamContext], Awaitable[None]] | None = None
    works: Callable[[Client], Awaitable[bool]] | None = None
    consumer: tuple[str, str] | None = None  # (stream, durable) that the worker fetches from
    bucket: str = ""  # that it looks for when it starts

    def __str__(self) -> str:
        return f"{self.lesson:02}-{self.worker}"


def write_module(lesson: int, name: str) -> None:
    """A lesson makes this module of the cells that begin with its name, beside its workers' scripts."""
    cells = [cell.source for cell in files.read(files.by_number(lesson)).cells]
    module = "\n\n\n".join(source for source in cells if source.startswith(f"# {name}"))
    (Lab.here().folder / name).write_text(module, encoding="utf-8")


def open_db(name: str) -> closing[sqlite3.Connection]:
    """A database of the worker; closed at the end of a `with`."""
    return closing(sqlite3.connect(Lab.here().folder / name, isolation_level=None))


async def seen(look: Callable[[], Awaitable[bool]], looks: int = 40, pause: float = 0.05) -> bool:
    """Whether `look()` is true in one of so many looks."""
    for _ in range(looks):
        if await look():
            return True
        await asyncio.sleep(pause)
    return False


async def word_is_written(nc: Client, subject: str, pattern: str) -> bool:
    """A fresh one, in one of the files of this name."""
    word = secrets.token_hex(8)
    await nc.publish(subject, word.encode())

    async def look() -> bool:
        with suppress(FileNotFoundError):  # it was renamed between the look and the reading
            return any(word in file.read_text() for file in Lab.here().folder.glob(pattern))
        return False

    return await seen(look, looks=31, pause=0.01)


async def write_pdf_work(js: JetStreamContext) -> None:
    """Lesson 07 puts this module beside the scripts of its workers."""
    cells = [cell.source for cell in files.read(files.by_number(7)).cells]
    wanted = ("def make_invoice(", "async def make(")
    made = [cell.partition("\n\n\n")[0] for cell in cells if cell.startswith(wanted)]
    imports = "import asyncio, json, time\nimport nats\nfrom fpdf import FPDF"
    module = "\n\n\n".join([imports, *made])
    (Lab.here().folder / "pdf_work.py").write_text(module, encoding="utf-8")


async def asker_makes(nc: Client) -> bool:
    """It is handed bad orders first, each time it is looked at, and then a good one."""
    orders, made = [*BAD, b'{"id": 7, "items": []}', ORDER], asyncio.Event()

    async def hand_out(msg: Msg) -> None:
        if msg.reply:
            await nc.publish(msg.reply, orders.pop(0) if orders else b"")

    async def on_made(msg: Msg) -> None:
        made.set()

    subs = [await nc.subscribe("pdf.next", cb=hand_out), await nc.subscribe("pdf.made", cb=on_made)]
    try:
        await asyncio.wait_for(made.wait(), 3)
    except TimeoutError:
        return False
    finally:
        for sub in subs:
            await sub.unsubscribe()
    return not orders


PAGE = free_port()  # of the collector of lesson 08


async def write_totals(js: JetStreamContext) -> None:
    write_module(8, "totals.py")


async def sample_is_on_the_page(nc: Client) -> bool:
    """All that is there is shown, after a fresh sample: also of a service that counts something else."""
    name = secrets.token_hex(4)
    for counters in ({"odd": 1}, {"odd": 2, "requests": 7}):
        sample = {"boot": "b7", "memory": 1, "counters": counters}
        await nc.publish(f"metrics.{name}", json.dumps(sample).encode())

    async def look() -> bool:
        page = await asyncio.to_thread(page_of_08)
        return f'stats_requests_total{{service="{name}"}} 7.0' in page

    return await seen(look, looks=21)


def page_of_08() -> str:
    try:
        with server.open_url(f"http://127.0.0.1:{PAGE}/metrics", timeout=1) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


async def write_rpc(js: JetStreamContext) -> None:
    write_module(10, "rpc.py")
    await js.create_key_value(bucket="RECEIPTS", description="natslab test")


async def stream_of_logs(js: JetStreamContext) -> None:
    """The stream LOGS, the consumer of lesson 14's sink, and its table."""
    with open_db("log.db") as db:
        db.execute("CREATE TABLE IF NOT EXISTS log (seq INTEGER PRIMARY KEY, line)")
    await js.add_stream(name="LOGS", subjects=["log.*.*"], description="natslab test")
    await js.add_consumer("LOGS", ConsumerConfig(durable_name="case", ack_wait=1.0))
    await settled(js._nc, "log.case.info", consumers=["LOGS.case"])


async def row_is_in_the_table(nc: Client) -> bool:
    """A fresh record is there once, all before it are, and all are acknowledged."""
    js, word = nc.jetstream(), secrets.token_hex(8)
    seq = (await js.publish("log.case.info", word.encode())).seq

    async def acknowledged() -> bool:
        return (await js.consumer_info("LOGS", "case")).ack_floor.stream_seq >= seq

    if not await seen(acknowledged):
        return False
    with open_db("log.db") as db:
        rows = db.execute("SELECT seq FROM log WHERE line = ?", (word,)).fetchall()
        return rows == [(seq,)] and db.execute("SELECT count(*) FROM log").fetchone() == (seq,)


async def queue_of_jobs(js: JetStreamContext) -> None:
    """The stream JOBS, a consumer for each worker of lesson 15, and the tables of their ledger."""
    with open_db("ledger.db") as db:
        db.execute("CREATE TABLE IF NOT EXISTS charges (job)")
        db.execute("CREATE TABLE IF NOT EXISTS begun (job, worker)")
        db.execute("CREATE TABLE IF NOT EXISTS charged (job PRIMARY KEY, worker)")
    policy = RetentionPolicy.WORK_QUEUE
    await js.add_stream(
        name="JOBS", subjects=["jobs.>"], retention=policy, description="natslab test"
    )
    for name in ("ack_last", "charge"):
        config = ConsumerConfig(durable_name=name, filter_subject=f"jobs.{name}", ack_wait=1.0)
        await js.add_consumer("JOBS", config)
    await settled(js._nc, consumers=["JOBS.ack_last", "JOBS.charge"])


async def no_job_is_left(nc: Client, subject: str) -> bool:
    """A fresh one, and all before it, are done."""
    js, key = nc.jetstream(), {"Nats-Msg-Id": secrets.token_hex(4)}
    await js.publish(subject, b"0.01", headers=key)

    async def look() -> bool:
        return not (await js.stream_info("JOBS", subjects_filter=subject)).state.subjects

    return await seen(look)


async def stream_of_payments(js: JetStreamContext) -> None:
    """The stream PAYMENTS of lesson 17 with a consumer, and its module."""
    write_module(17, "ledger.py")
    await js.add_stream(name="PAYMENTS", subjects=["payments.*.*"], description="natslab test")
    await js.add_consumer("PAYMENTS", ConsumerConfig(durable_name="booking", ack_wait=1.0))
    await settled(js._nc, consumers=["PAYMENTS.booking"])


async def payment_is_booked(nc: Client, wrong: bool = False) -> bool:
    """A fresh one; for the replayer it is wrong, as is all that came before it."""
    body = {"customer": "c-7", "currency": "JPY", "amount": 4990}
    ack = await nc.jetstream().publish("payments.JPY.c-7", json.dumps(body).encode())
    query = "SELECT hundredths, (SELECT count(*) FROM wrong) FROM ledger WHERE seq = ?"
    with open_db("payments.db") as db, suppress(sqlite3.OperationalError):  # no such table yet
        if wrong:
            seqs = [(seq,) for seq in range(1, ack.seq + 2)]  # the last one is not there
            db.executemany("INSERT OR IGNORE INTO wrong VALUES (?)", seqs)

        async def look() -> bool:
            return bool(db.execute(query, (ack.seq,)).fetchone() == (499_000, 0))

        return await seen(look)
    return False


async def timers_and_their_orders(js: JetStreamContext) -> None:
    """The stream of lesson 16, a consumer, its module, and a ledger with no order."""
    write_module(16, "reminders.py")
    with open_db("orders.db") as db:
        db.execute("CREATE TABLE IF NOT EXISTS orders (name PRIMARY KEY, due REAL, paid INTEGER)")
        db.execute("CREATE TABLE IF NOT EXISTS mails (name PRIMARY KEY, at REAL)")
    await js.add_stream(
        name="NOTIFICATIONS",
        subjects=["later.>", "notifications.*"],
        allow_msg_schedules=True,
        description="natslab test",
    )
    config = ConsumerConfig(durable_name="mail", filter_subject="notifications.email", ack_wait=1.0)
    await js.add_consumer("NOTIFICATIONS", config)
    await settled(js._nc, "notifications.email", consumers=["NOTIFICATIONS.mail"])


async def early_order_is_mailed(nc: Client) -> bool:
    """Its timer comes too early, after some for orders that nobody knows, and is set anew."""
    name = f"o-{secrets.token_hex(4)}"
    with open_db("orders.db") as db:
        db.execute("INSERT INTO orders VALUES (?, ?, FALSE)", (name, time.time() + 0.3))
        await nc.publish("notifications.email", b"[" * 200_000)  # too deep for the parser
        for order in (["o-1"], None, "", "\ud800", "o-*", "o-none", name):
            await nc.publish("notifications.email", json.dumps({"order": order}).encode())

        async def look() -> bool:
            return bool(db.execute("SELECT * FROM mails WHERE name = ?", (name,)).fetchone())

        return await seen(look, looks=60)


async def activity(js: JetStreamContext) -> None:
    """The stream of lesson 18, a consumer for one partition, and the reader's table."""
    with open_db("activity.db") as db:
        db.execute(
            "CREATE TABLE IF NOT EXISTS done (i INTEGER PRIMARY KEY, seq UNIQUE, customer, reader)"
        )
    await js.add_stream(name="CASE_18", subjects=["by.*.*.*"], description="natslab test")
    config = ConsumerConfig(durable_name="p0", filter_subject="by.0.>", max_ack_pending=1)
    await js.add_consumer("CASE_18", config)
    await settled(js._nc, consumers=["CASE_18.p0"])


async def event_is_processed(nc: Client) -> bool:
    """A fresh one, and all before it: their rows are there, each once."""
    seq = (await nc.jetstream().publish("by.0.c-7.click", b"{}")).seq
    query = "SELECT count(*) FROM done WHERE seq <= ?"
    with open_db("activity.db") as db:

        async def look() -> bool:
            return bool(db.execute(query, (seq,)).fetchone() == (seq,))

        return await seen(look)


ACTIVITY = {"stream": "CASE_18", "consumers": ["p0"], "batch": 1, "work": {}}


async def queue_of_orders(js: JetStreamContext) -> None:
    """The streams of lesson 19, its module, and the tables of its ledger."""
    write_module(19, "dead_letters.py")
    with open_db("orders.db") as db:
        db.execute("CREATE TABLE IF NOT EXISTS life (subject, what, delivery, worker)")
        db.execute("CREATE TABLE IF NOT EXISTS shipped (name PRIMARY KEY, cents)")
        db.execute("CREATE TABLE IF NOT EXISTS halts (subject)")
    policy, mark = RetentionPolicy.WORK_QUEUE, "natslab test"
    await js.add_stream(name="ORDERS_DLQ", subjects=["dlq.ORDERS.*"], description=mark)
    await js.add_stream(name="ORDERS", subjects=["order.*"], retention=policy, description=mark)
    await js.add_consumer("ORDERS", ConsumerConfig(durable_name="shipping", ack_wait=1.0))
    await settled(js._nc, "dlq.ORDERS.0", "order.o-0", consumers=["ORDERS.shipping"])


async def no_order_is_left(nc: Client) -> bool:
    """A fresh one is shipped, and all before it are shipped or dead letters."""
    js, name = nc.jetstream(), secrets.token_hex(4)
    order = {"order": name, "items": {"lamp": 2}, "currency": "EUR", "amount": 4990}
    await js.publish(f"order.{name}", json.dumps(order).encode())
    with open_db("orders.db") as db:

        async def look() -> bool:
            done = db.execute("SELECT * FROM shipped WHERE name = ?", (name,)).fetchone()
            return bool(done) and not (await js.stream_info("ORDERS")).state.messages

        return await seen(look, looks=60)


async def stream_of_workflows(js: JetStreamContext) -> None:
    """The stream of lesson 21 with two consumers, its module, and the tables of its ledger."""
    write_module(21, "workflow.py")
    with open_db("flow.db") as db:
        db.execute(
            "CREATE TABLE IF NOT EXISTS effects (name, step, cents, PRIMARY KEY (name, step))"
        )
        db.execute("CREATE TABLE IF NOT EXISTS deaths (moment, t, name)")
    await js.add_stream(
        name="WORKFLOWS",
        subjects=["workflow.*.*.*"],
        allow_atomic=True,
        allow_msg_schedules=True,
        description="natslab test",
    )
    for name, kind in (("boss", "in.*"), ("pay", "cmd.pay")):
        subject = f"workflow.*.{kind}"
        config = ConsumerConfig(durable_name=name, filter_subject=subject, ack_wait=1.0)
        await js.add_consumer("WORKFLOWS", config)
    await settled(js._nc, consumers=["WORKFLOWS.boss", "WORKFLOWS.pay"])


ORDER_21 = {"customer": "c-7", "items": {"lamp": 2}, "currency": "EUR", "amount": 4990}


async def workflow_goes_on(nc: Client, asked: str, told: str) -> bool:
    """A fresh order, and what its worker makes of it, once all before it is dealt with."""
    js, name = nc.jetstream(), f"o-{secrets.token_hex(4)}"
    body = json.dumps({"order": name, **ORDER_21}).encode()
    await js.publish(f"workflow.{name}.{asked}", body, headers={"Attempt": "1"})

    async def look() -> bool:
        found = await js.stream_info("WORKFLOWS", subjects_filter=f"workflow.{name}.{told}")
        return bool(found.state.subjects)

    return await seen(look, looks=60)


async def log_of_users(js: JetStreamContext) -> None:
    """The stream USER_EVENTS of lesson 22, and its module."""
    write_module(22, "users.py")
    await js.add_stream(name="USER_EVENTS", subjects=["user.*.*"], description="natslab test")
    await settled(js._nc, "user.c-7.joined")


async def credit_is_in_the_read_model(nc: Client) -> bool:
    """Of a fresh customer, after all events before."""
    user, event = f"c-{secrets.token_hex(4)}", {"v": 2, "amount": 7, "command": "test"}
    await nc.jetstream().publish(f"user.{user}.credited", json.dumps(event).encode())
    with open_db("credits.db") as db:

        async def look() -> bool:
            with suppress(sqlite3.OperationalError):  # it has no tables yet
                found = db.execute("SELECT value FROM rows WHERE user = ?", (user,)).fetchone()
                return bool(found == (7,))
            return False

        return await seen(look)


LIVES = {"model": "orders", "apart": False, "dies": 10**12}


async def bucket_of_services(js: JetStreamContext) -> None:
    await js.create_key_value(bucket="SERVICES_r", direct=True, description="natslab test")


async def bank_charges(nc: Client) -> bool:
    order = json.dumps({"card": "card 7", "amount": 20}).encode()
    key = {"Rpc-Key": secrets.token_hex(4)}
    try:
        msg = await nc.request("rpc.bank.charge", order, timeout=2, headers=key)
    except (TimeoutError, NoRespondersError):
        return False
    return "Nats-Service-Error" not in (msg.headers or {})


async def reader_passes_on(nc: Client) -> bool:
    seen = await nc.subscribe("backlog.seen")
    try:
        await nc.publish("backlog", b"fresh")
        while (await seen.next_msg(timeout=0.3)).data != b"fresh":
            pass
    except TimeoutError:
        return False
    finally:
        await seen.unsubscribe()
    return True


async def guest_is_here(nc: Client) -> bool:
    beats = await nc.subscribe("chat.presence.beat.ada")
    try:
        await beats.next_msg(timeout=1)
    except TimeoutError:
        return False
    finally:
        await beats.unsubscribe()
    return True


async def trader_has_seen(nc: Client) -> bool:
    report = await nc.subscribe("stocks.seen.crowd")
    try:
        for _ in range(20):
            await nc.publish("stocks.AAPL", json.dumps({"at": time.monotonic()}).encode())
            if json.loads((await report.next_msg(timeout=1)).data):
                return True
    except TimeoutError:
        pass
    await report.unsubscribe()
    return False


CASES = [
    Case(1, "reader", ("r", "backlog"), ("backlog",), works=reader_passes_on),
    Case(
        *(2, "guest", ("ada", "chat.presence", 0.1), ("chat.presence.beat.ada",)),
        works=guest_is_here,
    ),
    Case(3, "working_desk", ("d", "price.work"), ("price.work",), ("price.work", b"0")),
    Case(3, "freezing_desk", ("price.frozen",), ("price.frozen",), ("price.frozen", b"AAPL")),
    Case(
        *(4, "replica", ("search", "s0", "a", ["red lamp"])),
        ("search.shard.s0", "search.replica.s0.a"),
        ("search.shard.s0", b"lamp"),
    ),
    Case(
        *(5, "instance", ("inv-1", "inventory"), ("shop.inventory.stock",)),
        ("shop.inventory.stock", b"lamp"),
    ),
    Case(
        *(6, "sink", ("a", "{folder}/logs.txt"), ("logs.shop.info", "logs.shop.error")),
        works=partial(word_is_written, subject="logs.case.info", pattern="logs.txt*"),
    ),
    Case(
        *(7, "worker", ("w", "pdf", 0.0), ("pdf.jobs.normal",)),
        ("pdf.jobs.normal", ORDER),
        write_pdf_work,
    ),
    Case(7, "asking", ("w", "pdf", 0.0), prepare=write_pdf_work, works=asker_makes),
    Case(
        *(8, "api", ("api-1", "stats.ask", "metrics"), ("stats.ask",)),
        ("stats.ask", b""),
    ),
    Case(
        *(8, "collector", ("metrics", PAGE, "{folder}/totals.json"), ("metrics.bad",)),
        prepare=write_totals,
        works=sample_is_on_the_page,
    ),
    Case(
        *(9, "owner", ("owner", "store")),
        ("store.set.bad", "store.incr.bad", "store.get.bad", "store.odd.bad"),
        ("store.set.good", b"0"),
    ),
    Case(
        *(10, "bank_server", ("bank", "database-never", ":memory:", "RECEIPTS")),
        ("rpc.bank.charge", "rpc.bank.$list", "rpc.bank.nothing"),
        prepare=write_rpc,
        works=bank_charges,
        bucket="RECEIPTS",
    ),
    Case(
        *(11, "feed", ("stocks", ["AAPL", "MSFT"], 50.0)),
        ("stocks.last.AAPL", "stocks.last.NOPE"),
        ("stocks.last.AAPL", b""),
    ),
    Case(
        *(11, "traders", ("stocks", "crowd", ["AAPL", "*"], 0), ("stocks.AAPL",)),
        works=trader_has_seen,
    ),
    Case(
        *(12, "in_memory", ("r",), ("r.register.x.y", "r.lookup.x")),
        ("r.lookup.serviceA", b""),
    ),
    Case(
        *(12, "service_a", ("r", "a1", os.devnull, 0.25), ("r.health.serviceA.a1",)),
        ("r.health.serviceA.a1", b""),
    ),
    Case(
        *(12, "registrar", ("r",), ("r.register.x.y", "r.deregister.x.y")),
        ("r.deregister.serviceA.a1", b""),
        bucket_of_services,
        bucket="SERVICES_r",
    ),
    Case(
        *(12, "clerk", ("r",), ("r.lookup.x",)),
        ("r.lookup.serviceA", b""),
        bucket_of_services,
    ),
    Case(
        *(13, "plain_worker", ("d", "requests.group", 1), ("requests.group",)),
        ("requests.group", b"0"),
    ),
    Case(
        *(13, "worker", ("d", "requests", 1), ("requests.to.d",)),
        ("requests.to.d", b"0"),
    ),
    Case(
        *(14, "sink", ("case", "{folder}/log.db", ["write", "ack"])),
        poison=("log.case.info",),
        prepare=stream_of_logs,
        works=row_is_in_the_table,
        consumer=("LOGS", "case"),
    ),
    Case(
        *(14, "file_sink", ("{folder}/file.log",)),
        poison=("log.case.info",),
        works=partial(word_is_written, subject="log.case.info", pattern="file.log"),
    ),
    Case(
        *(15, "charger", ("ack_last", "{folder}/ledger.db", [CHARGE, "ack"])),
        poison=("jobs.ack_last",),
        prepare=queue_of_jobs,
        works=partial(no_job_is_left, subject="jobs.ack_last"),
        consumer=("JOBS", "ack_last"),
    ),
    Case(
        *(15, "charging_worker", ("w0", "charge", "{folder}/ledger.db")),
        poison=("jobs.charge",),
        prepare=queue_of_jobs,
        works=partial(no_job_is_left, subject="jobs.charge"),
        consumer=("JOBS", "charge"),
    ),
    Case(
        *(16, "mailer", ("mail", "{folder}/orders.db"), ("notifications.email",)),
        prepare=timers_and_their_orders,
        works=early_order_is_mailed,
        consumer=("NOTIFICATIONS", "mail"),
    ),
    Case(
        *(17, "booker", ("booking", "{folder}/payments.db", "receipts", RULES)),
        poison=("payments.JPY.c-7",),
        prepare=stream_of_payments,
        works=payment_is_booked,
        consumer=("PAYMENTS", "booking"),
    ),
    Case(
        *(17, "replayer", ("{folder}/payments.db", "receipts", RULES, 0.001)),
        poison=("payments.JPY.c-7",),
        prepare=stream_of_payments,
        works=partial(payment_is_booked, wrong=True),
    ),
    Case(
        *(18, "reader", ("r0", "{folder}/activity.db", ACTIVITY)),
        poison=("by.0.c-7.click", "by.0.c-7.odd"),
        prepare=activity,
        works=event_is_processed,
        consumer=("CASE_18", "p0"),
    ),
    Case(
        *(19, "shipper", ("w0", "shipping", "{folder}/orders.db", 1)),
        poison=("order.bad",),
        prepare=queue_of_orders,
        works=no_order_is_left,
        consumer=("ORDERS", "shipping"),
    ),
    Case(
        *(21, "orchestrator", ("boss-1", "boss", "{folder}/flow.db")),
        poison=("workflow.bad.in.ORDER_RECEIVED", "workflow.bad.in.ODD", "workflow.b?d.in.ODD"),
        prepare=stream_of_workflows,
        works=partial(workflow_goes_on, asked="in.ORDER_RECEIVED", told="cmd.pay"),
        consumer=("WORKFLOWS", "boss"),
    ),
    Case(
        *(21, "clerk", (("pay", "PAID", "REFUSED", {}), "pay", "{folder}/flow.db")),
        poison=("workflow.bad.cmd.pay",),
        prepare=stream_of_workflows,
        works=partial(workflow_goes_on, asked="cmd.pay", told="in.PAID"),
        consumer=("WORKFLOWS", "pay"),
    ),
    Case(
        *(22, "projector", ("orders", "{folder}/credits.db", "{folder}/vault.db", LIVES)),
        poison=("user.c-7.credited", "user.c-7.joined", "user.c-7.odd"),
        prepare=log_of_users,
        works=credit_is_in_the_read_model,
    ),
    Case(
        *(23, "clients", ("w", 20, ["tick.S000"], 0)),
        poison=("clients.w", "tick.S000"),
        good=("clients.w", b""),
    ),
]
