"""Film the kill in lesson 00: `python tests/film.py` runs it in JupyterLab and writes notebooks/img/kill.gif."""

import io
import shutil
import tempfile
from pathlib import Path

import helpers
import nbformat
from PIL import Image
from playwright.sync_api import Page
from test_browser import FIRST, browsing, come_to, kernel_waits, serving

FILM = helpers.NOTEBOOKS / "img" / "kill.gif"
SIZE = (900, 640)
SHORT, LONG = 120, 2500  # ms that a frame is shown
BEFORE, KILL, AFTER = (
    "Three servers, and you are",
    "await lab.kill(before)",
    "is dead: you moved to",
)


def film(page: Page, address: str, cells: list[str]) -> list[tuple[Image.Image, int]]:
    """(frame, ms) from the picture of the whole cluster to the one without the dead server."""
    come_to(page, address.replace("lab/tree", "doc/tree"), "Start here")
    helpers.until(lambda: kernel_waits(page, address, FIRST), 60, "a kernel that is connected")
    where = {
        words: next(i for i, c in enumerate(cells) if words in c) for words in (BEFORE, KILL, AFTER)
    }
    go_to(page, where[BEFORE] + 1)
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Above Selected Cell", exact=True).click()
    helpers.until(lambda: ran(page, where[BEFORE]), 60, "the cells before the drill")
    frames: list[tuple[Image.Image, int]] = []
    show(page, frames, where[BEFORE], LONG)
    go_to(page, where[BEFORE] + 1)
    for place in range(where[BEFORE] + 1, where[AFTER] + 1):
        go_to(page, place)
        page.keyboard.press("Control+Enter")
        while not ran(page, place):
            show(page, frames, place, SHORT)
        show(page, frames, place, LONG if place in where.values() else 5 * SHORT)
    show(page, frames, where[AFTER], LONG)
    return frames


def go_to(page: Page, place: int) -> None:
    """Select a cell, as a command, not to write in it."""
    cell = page.locator(".jp-Notebook .jp-Cell").nth(place)
    cell.scroll_into_view_if_needed()
    cell.locator(".jp-InputPrompt, .jp-Cell-inputArea").first.click()
    page.keyboard.press("Escape")


def ran(page: Page, place: int) -> bool:
    """True for text, and for code that has its number."""
    cell = page.locator(".jp-Notebook .jp-Cell").nth(place)
    prompt = cell.locator(".jp-InputPrompt")
    if "jp-CodeCell" not in (cell.get_attribute("class") or ""):
        return True
    return bool((prompt.text_content() or "").strip("[]: \u200b").isdigit())


def show(page: Page, frames: list, place: int, ms: int) -> None:
    """One more frame, or the last one longer where nothing has moved."""
    page.locator(".jp-Notebook .jp-Cell").nth(place).scroll_into_view_if_needed()
    page.wait_for_timeout(60)  # a frame or two to draw
    frame = Image.open(io.BytesIO(page.screenshot())).convert("RGB").resize((720, 512))
    if frames and frames[-1][0].tobytes() == frame.tobytes():
        frames[-1] = (frame, frames[-1][1] + ms)
    else:
        frames.append((frame, ms))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        course = Path(folder)
        for name in ("infra", "lib", "notebooks"):
            shutil.copytree(helpers.ROOT / name, course / name)
        shutil.copy(helpers.ROOT / "README.md", course)
        notebook = nbformat.read(course / FIRST, as_version=4)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs, cell.execution_count = [], None
        nbformat.write(notebook, course / FIRST)
        with serving(course) as address, browsing(*SIZE) as page:
            frames = film(page, address, [cell.source for cell in notebook.cells])
    pictures = [frame.quantize(64, dither=Image.Dither.NONE) for frame, _ in frames]
    pictures[0].save(
        FILM,
        save_all=True,
        append_images=pictures[1:],
        duration=[min(ms, 4000) for _, ms in frames],
        loop=0,
        optimize=True,
    )
    print(f"{FILM}: {len(frames)} frames, {FILM.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
