"""The list of lessons: the one place for their titles, and for the question each one answers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Lesson:
    """One lesson; `slug` is its file name without number and ending."""

    number: int
    slug: str
    title: str
    question: str
    part: str

    @property
    def file(self) -> str:
        """The file name below `notebooks/`."""
        return f"{self.number:02}_{self.slug}.ipynb"


SETUP, CORE, JETSTREAM, OPERATING = "Start", "Core NATS", "JetStream", "Operating it"

COURSE = [
    Lesson(*row)
    for row in (
        (0, "start_here", "Start here", "Is my set-up sound, and how do lessons work?", SETUP),
        (1, "pub_sub", "Publish and subscribe", "Who gets a message, and who never will?", CORE),
        (2, "chat", "Build a chat", "How far do rooms get you without a server of your own?", CORE),
        (3, "request_reply", "Ask and get an answer", "What if nobody answers?", CORE),
        (4, "scatter_gather", "Scatter and gather", "When do I stop waiting for answers?", CORE),
        (
            5,
            "micro",
            "Run services with NATS micro",
            "How do I find, watch and scale services?",
            CORE,
        ),
        (6, "logger", "Collect logs from everywhere", "How do I log without ever blocking?", CORE),
        (7, "task_queue", "Share out tasks", "What happens to the task of a dead worker?", CORE),
        (8, "metrics", "Aggregate metrics", "How do counters survive a restart?", CORE),
        (9, "key_value", "Keep state by key", "Who wins when two write one key?", CORE),
        (10, "rpc", "Call functions over NATS", "Which calls may be tried again?", CORE),
        (
            11,
            "stock_prices",
            "Stream prices in real time",
            "How do I keep slow readers harmless?",
            CORE,
        ),
        (
            12,
            "service_registry",
            "Keep a service registry",
            "How soon do I notice a dead service?",
            CORE,
        ),
        (13, "load_balancer", "Balance load", "Random, weighted or least loaded?", CORE),
        (
            14,
            "event_log",
            "Keep an event log",
            "How does every event reach the database once?",
            JETSTREAM,
        ),
        (15, "at_least_once_queue", "Lose no job", "What does it take to do every job?", JETSTREAM),
        (16, "delayed_messages", "Deliver later", "How late is a delayed message?", JETSTREAM),
        (17, "replayable_events", "Replay events", "How do I process yesterday again?", JETSTREAM),
        (
            18,
            "user_activity",
            "Track user activity",
            "How do I keep order per user and scale?",
            JETSTREAM,
        ),
        (19, "dead_letters", "Handle poison messages", "Where do failed messages go?", JETSTREAM),
        (20, "multi_region", "Span two regions", "What if a whole region is cut off?", JETSTREAM),
        (21, "workflow", "Run a workflow", "Where does it go on after a crash?", JETSTREAM),
        (22, "event_sourcing", "Derive state from events", "Can I rebuild everything?", JETSTREAM),
        (23, "market_data", "Take in market data", "How fast can Python go?", JETSTREAM),
        (24, "cluster", "Operate a cluster", "What does losing a node cost?", OPERATING),
        (25, "security", "Lock it down", "Who may do what, and how do I prove it?", OPERATING),
        (
            26,
            "super_cluster",
            "Join clusters on Kubernetes",
            "Who answers when a region is gone?",
            OPERATING,
        ),
        (27, "observability", "See what happens", "Which numbers should wake you up?", OPERATING),
    )
]


def lesson(number: int) -> Lesson:
    """The lesson with this number. Raises KeyError with the valid range when there is none."""
    if not 0 <= number < len(COURSE):
        raise KeyError(f"there is no lesson {number}; they are 0 to {len(COURSE) - 1}")
    return COURSE[number]
