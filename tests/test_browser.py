"""As a reader sees it: JupyterLab opens lessons, follows their links, runs them, shows charts."""

import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import helpers
import nbformat
import pytest
from PIL import Image
from playwright.sync_api import Locator, Page, expect, sync_playwright

pytestmark = pytest.mark.browser

FIRST, LESSON = "notebooks/00_start_here.ipynb", "notebooks/15_at_least_once_queue.ipynb"
BROWSERS = ("chromium", "google-chrome", "chromium-browser")
# Without these a browser looks for hosts that a test machine may not reach, at every start.
QUIET = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"]
QUIET += ["--disable-background-networking", "--disable-component-update"]
SCREENSHOT = helpers.ROOT / ".cache" / "lesson-15.png"


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout whose notebooks JupyterLab may save."""
    tmp_path = tmp_path_factory.mktemp("course")
    for name in ("infra", "lib", "notebooks"):
        shutil.copytree(helpers.ROOT / name, tmp_path / name)
    shutil.copy(helpers.ROOT / "README.md", tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def address(course: Path) -> Iterator[str]:
    """JupyterLab as command one starts it. That it makes an environment first is tested in test_up."""
    with serving(course) as address:
        yield address


@contextmanager
def serving(course: Path) -> Iterator[str]:
    """The address of the first lesson in a JupyterLab on `course`, for as long as the block lasts."""
    serve = "import sys, up; up.serve(up.Path(sys.executable), up.free_port(), False, {})"
    server = subprocess.Popen(
        [sys.executable, "-c", serve],
        env=helpers.clean_environment(NATSLAB_CLUSTER="embedded"),
        cwd=course / "infra",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        told = ""
        while "JupyterLab is ready: " not in told:
            line = server.stdout.readline()
            assert line, told
            told += line
        yield re.search(r"http://\S+", told)[0]
    finally:
        server.send_signal(signal.SIGINT)
        server.communicate(timeout=60)


@pytest.fixture
def page() -> Iterator[Page]:
    if chromium() is None:
        pytest.skip("no Chromium is installed")
    with browsing(1200, 2400) as page:
        yield page


def chromium() -> str | None:
    return next(filter(None, map(shutil.which, BROWSERS)), None)


@contextmanager
def browsing(width: int, height: int) -> Iterator[Page]:
    """A page of a headless Chromium."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=QUIET)
        yield browser.new_page(viewport={"width": width, "height": height})
        browser.close()


def test_run_all_cells_of_lesson_15(address: str, page: Page, course: Path) -> None:
    come_to(page, address.replace(FIRST, LESSON), "Lose no job")
    lesson = page.locator(".jp-Notebook")
    # Cells that are run before the kernel is connected are forgotten.
    helpers.until(lambda: kernel_waits(page, address), 60, "a kernel that is connected and idle")
    page.locator("body").press("Escape")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()

    # The copy on disk has outputs from before, so we look at the counter of the last cell: it is a
    # star while the cell waits for its turn.
    last = lesson.locator(".jp-CodeCell").last
    last.scroll_into_view_if_needed()
    expect(last.locator(".jp-InputPrompt")).to_have_text(re.compile(r"\[\*\]"), timeout=30_000)
    waits_no_more = re.compile(r"\[(\d+| )\]")  # a cell that fails empties the queue
    expect(last.locator(".jp-InputPrompt")).to_have_text(waits_no_more, timeout=120_000)
    assert errors_saved(page, course / LESSON) == []
    expect(last.locator(".jp-InputPrompt")).to_have_text(re.compile(r"\[\d+\]"))
    expect(last).to_contain_text("lab closed, nothing left behind")
    assert lesson.locator("[data-mime-type='application/vnd.jupyter.stderr']").count() == 0
    assert page.locator(".Toastify__toast").count() == 0, "a notice covers the lesson"

    SCREENSHOT.parent.mkdir(exist_ok=True)
    saved = nbformat.read(helpers.ROOT / LESSON, as_version=4)
    drawn = [
        o for c in saved.cells for o in c.get("outputs", []) if "image/png" in o.get("data", {})
    ]
    assert charts_seen(page) == len(drawn) > 0
    colours = Image.open(SCREENSHOT).convert("RGB").getcolors(1 << 24)
    assert len(colours) > 100, "the screenshot is blank"


def errors_saved(page: Page, path: Path) -> list[str]:
    """Save the lesson; what went wrong in it. The page itself holds only the cells in sight."""
    with page.expect_response(lambda answer: answer.request.method == "PUT"):
        page.keyboard.press("Control+s")
    outputs = [o for c in nbformat.read(path, as_version=4).cells for o in c.get("outputs", [])]
    return ["\n".join(o.traceback) for o in outputs if o.output_type == "error"]


def test_links_lead_to_the_table_of_lessons_and_to_the_next_one(address: str, page: Page) -> None:
    come_to(page, address, "Start here")
    link(page, "all lessons").click()
    readme = page.locator(".jp-MarkdownViewer")
    expect(readme.get_by_role("heading", name="The lessons", exact=True)).to_be_visible()
    expect(readme.get_by_role("link", name="Build a chat")).to_be_visible()

    # Back to the lesson's tab, and on to the next one.
    page.locator(".lm-TabBar-tab", has_text="00_start_here").click()
    link(page, "01 →").click()
    open_lesson(page, "Publish and subscribe")

    # From the table to a lesson too.
    page.locator(".lm-TabBar-tab", has_text="README.md").click()
    readme.get_by_role("link", name="Build a chat").click()
    open_lesson(page, "Build a chat")


def test_tabs_are_the_courses_own(address: str, page: Page, course: Path) -> None:
    """They are saved in its folder, not in the reader's home where all projects meet."""
    come_to(page, address, "Start here")
    saved = course / ".cache" / "jupyter" / "lab" / "workspaces"
    helpers.until(lambda: list(saved.glob("*.jupyterlab-workspace")), 30, "the saved workspace")


def come_to(page: Page, address: str, title: str) -> None:
    """Open JupyterLab at a lesson; where it forgets which on a very busy machine, do as readers do."""
    page.goto(address)
    shown = page.locator(".jp-Notebook:visible").get_by_role("heading", name=title).first
    launcher = page.locator(".lm-TabBar-tab", has_text="Launcher").first
    expect(shown.or_(launcher).first).to_be_visible(timeout=60_000)
    try:
        expect(shown).to_be_visible(timeout=20_000)
    except AssertionError:
        page.reload()
        open_lesson(page, title)


def open_lesson(page: Page, title: str) -> None:
    """See a lesson's title, in the tab that is in front."""
    shown = page.locator(".jp-Notebook:visible").get_by_role("heading", name=title)
    expect(shown.first).to_be_visible(timeout=60_000)


def link(page: Page, name: str) -> Locator:
    """A link of the navigation line at the top of a lesson."""
    return page.locator(".jp-Notebook:visible").get_by_role("link", name=name).first


def kernel_waits(page: Page, address: str, lesson: str = LESSON) -> bool:
    """The server says that the lesson's kernel is idle and JupyterLab is connected to it."""
    sessions = page.request.get(address.replace(f"lab/tree/{FIRST}", "api/sessions")).json()
    kernels = [session["kernel"] for session in sessions if session["path"] == lesson]
    return any(k["execution_state"] == "idle" and k["connections"] for k in kernels)


def charts_seen(page: Page) -> int:
    """Scroll up from the end and count the charts; JupyterLab draws only what is in view.

    The screenshot is of the topmost chart, the one of the killed leader.
    """
    seen: set[str] = set()
    page.locator(".jp-Notebook").hover()
    for _ in range(60):
        for picture in page.locator(".jp-OutputArea .jp-RenderedImage img").all():
            source = picture.get_attribute("src") or ""
            if source not in seen:
                seen.add(source)
                picture.scroll_into_view_if_needed()
                page.screenshot(path=SCREENSHOT)
        page.mouse.wheel(0, -700)
        page.wait_for_timeout(50)  # a frame or two to draw
    return len(seen)
