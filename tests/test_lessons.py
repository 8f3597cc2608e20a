"""What every lesson and every solution promises, read from the files: no kernel is started.

The budgets are the measured habits of the notebook courses that people praise: short cells, much
more prose than code, few and small pictures.
"""

import ast
import base64
import itertools
import json
import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from helpers import NOTEBOOKS, ROOT
from natslab.authoring import course, files, index
from natslab.cells import defined
from natslab.parameters import stated


def notebooks(folder: Path) -> list[Path]:
    """All in a folder, in the course or not; what a reader keeps beside them is the reader's."""
    return sorted(path for path in folder.glob("*.ipynb") if ".mine" not in path.name)


LESSONS, SOLUTIONS = notebooks(NOTEBOOKS), notebooks(NOTEBOOKS / "solutions")
TOP_LEVEL_AWAIT = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT

# Of a code cell, the second for nine in ten; words of prose for each line of code.
MEDIAN_LINES, MOST_LINES, WORDS_PER_LINE = 8, 15, 6.0

# GitHub shows none of these, or not as JupyterLab does.
NOT_ON_GITHUB = {
    "```mermaid": "a Mermaid diagram",
    "<details": "<details>",
    "<style": "<style>",
    "> [!": "an alert",
    ":::": "an admonition",
    "](#": "a link into the notebook itself",
    "data:image": "an embedded image",
}
MAKERS = {"add_stream": "name", "create_key_value": "bucket", "create_object_store": "bucket"}
CONFIGS = {"StreamConfig": "name", "KeyValueConfig": "bucket", "ObjectStoreConfig": "bucket"}
MEASURED = "\u2248"  # the mark before a number whose digits are free
# Verbs of a lab that break something, whose event a claim must name: elsewhere they are skipped.
DRILLS = {"kill", "stop", "pause", "cut", "lame_duck"}
TALKERS = {"publish", "subscribe", "request", "publish_async", "pull_subscribe"}


class Lesson:
    """One notebook file, and the views on it that the rules below need."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.number = int(path.name[:2])
        self.is_solution = path.parent.name == "solutions"
        self.cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        self.code = [c for c in self.cells if c["cell_type"] == "code"]
        self.markdown = [c for c in self.cells if c["cell_type"] == "markdown"]
        self.source = [text(c["source"]) for c in self.code]
        self.prose = [text(c["source"]) for c in self.markdown]
        self.trees = [compile(python(s), path.name, "exec", TOP_LEVEL_AWAIT) for s in self.source]

    def tagged(self, tag: str) -> list[dict]:
        return [c for c in self.cells if tag in c["metadata"].get("tags", [])]

    def outputs(self) -> Iterator[tuple[int, dict]]:
        for number, cell in enumerate(self.code, 1):
            for output in cell["outputs"]:
                yield number, output

    def calls(self) -> Iterator[tuple[str, ast.Call]]:
        """(name of the function or method, the call) for all calls in the code."""
        for node in itertools.chain.from_iterable(map(ast.walk, self.trees)):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", None) or getattr(node.func, "id", "")
                yield name, node


def python(source: str) -> str:
    """Without the shell commands, which only IPython understands."""
    return re.sub(r"^[!%].*$", "pass", source, flags=re.M)


def is_markdown(cell: dict) -> bool:
    return bool(cell["cell_type"] == "markdown")


def text(source: str | list[str]) -> str:
    return "".join(source)


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((k.value for k in call.keywords if k.arg == name), None)


# The rules. Each yields what is wrong, in words.

Rule = Callable[[Lesson], Iterator[str]]


def size(lesson: Lesson) -> Iterator[str]:
    if (bytes_ := lesson.path.stat().st_size) > 300_000:
        yield f"{bytes_ // 1000} kB, at most 300"
    pictures = [o for _, o in lesson.outputs() if "image/png" in o.get("data", {})]
    pictures += re.findall(r"!\[", "".join(lesson.prose))
    if not lesson.is_solution and not 1 <= len(pictures) <= 6:
        yield f"{len(pictures)} pictures, 1 to 6"


def code_cells(lesson: Lesson) -> Iterator[str]:
    lines = [number_of_lines(c) for c in lesson.code]
    for number, count in enumerate(lines, 1):
        if count > 25:
            yield f"code cell {number} has {count} lines, at most 25"
    if lesson.is_solution:
        return
    # The exercises are apart: most readers run past them.
    own = sorted(number_of_lines(c) for c in lesson.code if c not in lesson.tagged("exercise"))
    if not 12 <= len(own) <= 35:
        yield f"{len(own)} code cells, 12 to 35"
    if statistics.median(own) > MEDIAN_LINES:
        yield f"half of the code cells have more than {statistics.median(own)} lines"
    if (ninth := own[int(0.9 * (len(own) - 1))]) > MOST_LINES:
        yield f"one code cell in ten has {ninth} lines or more, at most {MOST_LINES}"


def number_of_lines(cell: dict) -> int:
    return sum(bool(line.strip()) for line in text(cell["source"]).splitlines())


def enough_prose(lesson: Lesson) -> Iterator[str]:
    if lesson.is_solution:
        return
    # The exercises apart; what stands between fences is code.
    own = [c for c in lesson.cells if c not in lesson.tagged("exercise")]
    prose = "\n".join(text(c["source"]) for c in own if is_markdown(c))
    words = len(re.sub(r"^```.*?^```", "", prose, flags=re.M | re.S).split())
    lines = sum(number_of_lines(c) for c in own if not is_markdown(c))
    if not 700 <= words <= 2200:
        yield f"{words} words, 700 to 2,200"
    if words / lines < WORDS_PER_LINE:
        yield f"{words / lines:.1f} words per line of code, at least {WORDS_PER_LINE}"


def headings(lesson: Lesson) -> Iterator[str]:
    prose = re.sub(r"^```.*?^```", "", "\n".join(lesson.prose), flags=re.M | re.S)
    levels = [len(marks) for marks in re.findall(r"^(#+) ", prose, re.M)]
    if levels.count(1) != 1 or levels[0] != 1:
        yield "there is one # heading, and it comes first"
    for before, after in itertools.pairwise(levels):
        # A solution shows the exercises under the headings that they have in the lesson.
        if after > before + 1 and not lesson.is_solution:
            yield f"a heading of level {after} follows one of level {before}"
    title = re.match(r"# (?:Solutions: )?(.*)", prose)
    wanted = course.lesson(lesson.number).title
    if title is None or title[1] != wanted:
        yield f"the title in notebooks/course.toml is {wanted!r}"


def executed(lesson: Lesson) -> Iterator[str]:
    counts = [c["execution_count"] for c in lesson.code]
    if counts != list(range(1, len(counts) + 1)):
        yield "it was not run from top to bottom"


def outputs(lesson: Lesson) -> Iterator[str]:
    for number, output in lesson.outputs():
        shown = text(output.get("text", "")) + "".join(
            text(v) for kind, v in output.get("data", {}).items() if not kind.startswith("image/")
        )
        if output["output_type"] == "error":
            yield f"code cell {number} shows an error"
        if output["output_type"] == "execute_result" and "\n" not in shown:
            yield f"code cell {number} shows a value that is no table: {shown}"
        if output.get("name") == "stderr":
            yield f"code cell {number} writes to stderr"
        if "\x1b" in shown:
            yield f"code cell {number} prints in colour"
        if re.search(r"\b0x[0-9a-f]{6,}", shown):
            yield f"code cell {number} prints the address of an object"
        if any("widget" in kind for kind in output.get("data", {})):
            yield f"code cell {number} shows a widget"
        if "[Errno" in shown or str(ROOT) in shown or "/tmp/" in shown:
            yield f"code cell {number} prints a path of this machine"


def measurements(lesson: Lesson) -> Iterator[str]:
    if len(lesson.tagged("nbval-ignore-output")) > 2:
        yield "more than two cells whose output nobody compares"
    if lesson.tagged("nbval-skip") or lesson.tagged("raises-exception"):
        yield "a cell that is not tested"


def parameters(lesson: Lesson) -> Iterator[str]:
    if lesson.is_solution:
        return
    cells = lesson.tagged("parameters")
    if len(cells) != 1:
        yield f"{len(cells)} cells are tagged parameters"
        return
    for line in text(cells[0]["source"]).splitlines():
        if not re.fullmatch(r"\w+: \w+ = \S+ +# .*workshop: .+", line):
            yield f"not a typed constant with its size at a workshop: {line}"


def minima(lesson: Lesson) -> Iterator[str]:
    """Below it a lesson cannot show what it claims: `natslab run` and `Lab.start` refuse that."""
    for cell in lesson.tagged("parameters"):
        for name, parameter in stated(text(cell["source"])).items():
            values = [parameter.value, *parameter.scales.values()]
            if parameter.type not in ("int", "float"):
                continue
            if parameter.minimum is None:
                yield f"{name} states no minimum: # workshop: {values[-1]}, at least …"
            elif min(values) < parameter.minimum:
                yield f"{name} is {min(values)} at one of the scales, at least {parameter.minimum}"


def code_style(lesson: Lesson) -> Iterator[str]:
    for number, source in enumerate(lesson.source, 1):
        if re.search(r";\s*$", source, re.M):
            yield f"code cell {number}: a line ends with a semicolon"
        if lesson.number != 0 and re.search(
            r"\basyncio\.run\(|run_until_complete|nest_asyncio", source
        ):
            yield f"code cell {number}: a notebook awaits at top level"
        for line in source.splitlines():
            if "time.sleep(" in line and "#" not in line:  # a comment says what is blocked, and why
                yield f"code cell {number}: time.sleep stops every handler: {line.strip()}"
    for node in itertools.chain.from_iterable(map(ast.walk, lesson.trees)):
        if isinstance(node, ast.ExceptHandler) and node.type is None:
            yield f"line {node.lineno}: a bare except"
        if isinstance(node, ast.Name) and node.id in ("In", "Out"):
            yield f"line {node.lineno}: `{node.id}` is empty where nbval runs the cells"


def markdown(lesson: Lesson) -> Iterator[str]:
    for prose in lesson.prose:
        for mark, what in NOT_ON_GITHUB.items():
            if mark in prose:
                yield f"{what} in: {prose[:60]!r}"
        for alt, target in re.findall(r"!\[([^]]*)\]\(([^)]*)\)", prose):
            if not alt.strip():
                yield f"the image {target} has no alternative text"
            if target.startswith("http"):
                yield f"the image {target} is not in the repository"
        if "<img" in prose:
            yield "an image written in HTML"
    for target in re.findall(r"\]\(([^)\s]+)\)", "\n".join(lesson.prose)):
        if not re.match(r"[a-z]+:", target):
            file = lesson.path.parent / unquote(target.partition("#")[0])
            if not file.exists():
                yield f"the link to {target} leads nowhere"


def anatomy(lesson: Lesson) -> Iterator[str]:
    last = lesson.source[-1]
    if "await lab.close()" not in last:
        yield "the last code cell does not close the lab"
    if not lesson.tagged("nav"):
        yield "no cell is tagged nav"
    if lesson.is_solution:
        return
    prose = "\n".join(lesson.prose)
    for heading in ("The guarantee", "Your turn", "Recap"):
        if f"\n## {heading}\n" not in f"\n{prose}\n":
            yield f"no section ## {heading}"
    if "\n|" not in prose.partition("## The guarantee")[2].partition("\n## ")[0]:
        yield "the guarantee is not a table"
    if not re.search(r"\*\*\d+ min\*\*", lesson.prose[0]):
        yield "the first cell does not tell the minutes"
    for words in ("You will be able to", "Predict", "Watch for", "When not to"):
        if words.lower() not in prose.lower():
            yield f"nowhere **{words}**"
    if sum(name == "check" for name, _ in lesson.calls()) < 3:
        yield "fewer than three checks"
    if len(lesson.tagged("main-chart")) != 1:
        yield f"{len(lesson.tagged('main-chart'))} cells are tagged main-chart"
    elif not index.main_chart(files.read(lesson.path)):
        yield "the main chart shows no picture"


def drills(lesson: Lesson) -> Iterator[str]:
    """On a cluster that is not ours a drill is skipped: what it would have shown must not be ticked."""
    if lesson.is_solution:
        return
    named = {
        ast.unparse(name)
        for called, call in lesson.calls()
        if called == "check" and (event := keyword(call, "after")) is not None
        for name in ast.walk(event)
        if isinstance(name, ast.Name | ast.Attribute)
    }
    kept = set()
    for node in itertools.chain.from_iterable(map(ast.walk, lesson.trees)):
        if isinstance(node, ast.Assign) and list(drilled(node.value)):
            kept |= {
                ast.unparse(to) for to in node.targets if isinstance(to, ast.Name | ast.Attribute)
            }
    if len(kept) < sum(1 for tree in lesson.trees for _ in drilled(tree)):
        yield "the event of a drill is not kept: killed = await lab.kill(...)"
    for name in sorted(kept - named):
        yield f"no claim names what the drill {name!r} shows: check(..., after={name})"


def drilled(tree: ast.AST) -> Iterator[ast.Call]:
    """The calls of `lab` in here that break something."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            on_lab = getattr(node.func.value, "id", "") == "lab"
            if on_lab and node.func.attr in DRILLS:
                yield node


def repeatable(lesson: Lesson) -> Iterator[str]:
    """What breaks something begins anew each time; a wait names what it waits for."""
    for name, call in lesson.calls():
        if name == "until" and keyword(call, "what") is None and len(call.args) < 3:
            yield f"a wait does not name what for: {ast.unparse(call)}"
    section, broken, begun = "", False, True
    for cell in [*lesson.cells, {"cell_type": "markdown", "source": "## End"}]:
        source = text(cell["source"])
        if is_markdown(cell) and (head := re.search(r"^## (.*)", source, re.M)):
            if broken and not begun:
                yield f"section {section!r} breaks something and has no `await lab.begin(...)`"
            section, broken, begun = head[1].strip(), False, False
        elif not is_markdown(cell):
            broken |= bool(re.search(r"\.(kill|pause|cut|lame_duck)\(|\bspawn\(", source))
            for of in re.findall(r"lab\.begin\(\s*\"(.*?)\"", source):
                begun = True
                if of != section:
                    yield f"lab.begin({of!r}) stands in section {section!r}"


def services(lesson: Lesson) -> Iterator[str]:
    """What runs in a process of its own carries a tag, and ends well by `service.py`."""
    spawned = {
        ast.unparse(call.args[0]) for name, call in lesson.calls() if name == "spawn" and call.args
    }
    tagged = "\n".join(text(c["source"]) for c in lesson.tagged("service"))
    for name in sorted(spawned):
        if name.isidentifier() and f"async def {name}(" not in tagged:
            yield f"the cell of worker {name} is not tagged `service`"


def numbers(lesson: Lesson) -> Iterator[str]:
    """A number that may differ stands beside a verdict that may not; all tell what they come from."""
    shown = [text(output.get("text", "")) for _, output in lesson.outputs()]
    for output in shown:
        if MEASURED in output and not re.search(r"True|False|[✔✘]", output):
            yield f"a measured number without a verdict: {output.strip()!r}"
    if not any("\nmeasured with " in output for output in shown):
        yield "nothing says what it was measured with"


def answers(lesson: Lesson) -> Iterator[str]:
    """Each exercise has a hint, and its judge knows two wrong answers."""
    title, wrong = "", 2
    for cell in [
        *lesson.cells,
        {"cell_type": "markdown", "source": "### End", "metadata": {"tags": ["exercise"]}},
    ]:
        source = text(cell["source"])
        tags = cell["metadata"].get("tags", [])
        if is_markdown(cell) and "exercise" in tags:
            if lesson.is_solution and wrong < 2:
                yield f"{title}: the judge knows {wrong} wrong answers, at least 2"
            title, wrong = source.splitlines()[0], 0
            if "\nHint: " not in source and title != "### End":
                yield f"{title}: no hint"
        if "wrong" in tags:
            wrong += 1
            if not re.match(r"# Wrong: .{20}", source):
                yield f"{title}: a wrong answer does not say why: {source[:40]!r}"


def timed_claims(lesson: Lesson) -> Iterator[str]:
    """A claim about time compares two values: their room can be measured."""
    for name, call in lesson.calls():
        if name == "check" and keyword(call, "timed") is not None:
            claim = call.args[1]
            parts = claim.values if isinstance(claim, ast.BoolOp) else [claim]
            orders = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
            if not all(isinstance(p, ast.Compare) and isinstance(p.ops[0], orders) for p in parts):
                yield f"a timed claim compares two values: {ast.unparse(call.args[0])}"


def marks(lesson: Lesson) -> Iterator[str]:
    """Without the mark, `Lab` cannot tell which streams of a shared cluster it may delete."""
    for name, call in lesson.calls():
        asks = name in CONFIGS or (name in MAKERS and keyword(call, MAKERS[name]) is not None)
        described = keyword(call, "description")
        if asks and (described is None or "mark" not in ast.unparse(described)):
            yield f"{name} without description=lab.mark"


def keys(lesson: Lesson) -> Iterator[str]:
    """While the first copy waits for its quorum the second is refused, with an error of its own."""
    for number, source in enumerate(lesson.source, 1):
        again = "Nats-Msg-Id" in source and "retry(" in source
        if again and "10158" not in "".join(lesson.source):
            yield f"code cell {number} tries again under a key, and does not know error 10158"


def modules(lesson: Lesson) -> Iterator[str]:
    """Of two cells that define one name a module gets the second only: it takes it for a newer version."""
    written = {
        ast.literal_eval(call.args[0]) for name, call in lesson.calls() if name == "write_module"
    }
    cells = [(m[1], s) for s in lesson.source if (m := re.match(r"# (\w+\.py)\n", s))]
    for name in sorted(written ^ {name for name, _ in cells}):
        yield f"{name}: cells begin with its name, and a cell writes it, or neither"
    for (name, one), (other, two) in itertools.combinations(cells, 2):
        if name == other and (both := defined(one) & defined(two)):
            yield f"{name}: two of its cells define {', '.join(sorted(both))}"


def coroutines(lesson: Lesson) -> Iterator[str]:
    """A function that is interrupted before it awaits one leaves a warning in somebody else's cell."""
    own = {
        node.name
        for node in itertools.chain.from_iterable(map(ast.walk, lesson.trees))
        if isinstance(node, ast.AsyncFunctionDef)
        and not any(isinstance(part, ast.Yield) for part in ast.walk(node))
    }

    def begins(node: ast.AST) -> bool:
        return isinstance(node, ast.Call) and getattr(node.func, "id", "") in own

    for _, call in lesson.calls():
        if begins(call) and (handed := next(filter(begins, call.args), None)):
            yield f"{ast.unparse(call)}: hand over the function, not {ast.unparse(handed)}"


def charts(lesson: Lesson) -> Iterator[str]:
    for number, output in lesson.outputs():
        if png := output.get("data", {}).get("image/png"):
            size = base64.b64decode(text(png))[16:24]
            if (int.from_bytes(size[:4]), int.from_bytes(size[4:])) != (864, 360):
                yield f"code cell {number}: a picture that is not 864 x 360"
            if not output["metadata"].get("image/png", {}).get("alt"):
                yield f"code cell {number}: a picture without alternative text"


RULES: list[Rule] = [
    size,
    code_cells,
    enough_prose,
    headings,
    executed,
    outputs,
    measurements,
    parameters,
    minima,
    code_style,
    markdown,
    anatomy,
    drills,
    repeatable,
    services,
    numbers,
    answers,
    timed_claims,
    marks,
    keys,
    modules,
    coroutines,
    charts,
]


@pytest.mark.parametrize("path", [*LESSONS, *SOLUTIONS], ids=lambda path: path.stem)
def test_rules(path: Path) -> None:
    lesson = Lesson(path)
    wrong = [f"{rule.__name__}: {what}" for rule in RULES for what in rule(lesson)]
    assert not wrong, "\n  ".join([f"{path.relative_to(ROOT)}:", *wrong])


# All lessons together.


def test_every_notebook_is_in_the_course_and_has_solutions() -> None:
    assert LESSONS
    planned = {lesson.file for lesson in course.course()}
    assert {path.name for path in LESSONS} <= planned
    assert {path.name for path in LESSONS} == {path.name for path in SOLUTIONS}
    assert [lesson.number for lesson in course.course()] == list(range(29))


@pytest.mark.parametrize("path", SOLUTIONS, ids=lambda path: path.stem)
def test_a_solution_solves_the_exercises_of_its_lesson(path: Path) -> None:
    lesson, solution = Lesson(NOTEBOOKS / path.name), Lesson(path)
    titles = [
        [text(c["source"]).splitlines()[0] for c in side.tagged("exercise") if is_markdown(c)]
        for side in (lesson, solution)
    ]
    assert titles[0] == titles[1]
    assert 2 <= len(titles[0]) <= 4, "two or three exercises, rarely four"
    for side, sign in ((lesson, "○"), (solution, "✔")):
        verdicts = [text(o["text"]) for c in side.tagged("exercise") for o in c.get("outputs", [])]
        judged = [line for line in "".join(verdicts).splitlines() if line[:1] in "○✔✘"]
        assert len(judged) >= len(titles[0])
        assert {line[0] for line in judged} == {sign}, judged


def test_the_table_in_the_readme_is_up_to_date() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert index.with_table(readme) == readme, "run: natslab index"


def test_the_page_to_choose_by_is_up_to_date() -> None:
    page = (NOTEBOOKS / "CHOOSER.md").read_text(encoding="utf-8")
    assert index.with_choices(page) == page, "run: natslab index"
    for target in re.findall(r"\]\(([^)]+)\)", page):
        assert (NOTEBOOKS / target).exists(), target


# No two lessons share a name: they may run side by side on one cluster.


def names_of_streams(lesson: Lesson) -> set[str]:
    found = set()
    for name, call in lesson.calls():
        key = (MAKERS | CONFIGS).get(name)
        value = keyword(call, key) if key else None
        if isinstance(value, ast.Constant):
            found.add(value.value)
    return found


def first_words_of_subjects(lesson: Lesson) -> set[str]:
    """The first token of every subject that the code spells out, also by way of a variable."""
    variables: dict[str, list[ast.expr]] = {}
    for node in itertools.chain.from_iterable(map(ast.walk, lesson.trees)):
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                variables.setdefault(name, []).append(value)
            case ast.For(target=ast.Name(id=name), iter=value):
                variables.setdefault(name, []).append(value)
    found = set()
    for name, call in lesson.calls():
        places = [keyword(call, "subjects"), keyword(call, "filter_subject")]
        places += call.args[:1] if name in TALKERS else []
        for place in filter(None, places):
            found |= {subject.split(".")[0] for subject in spelled_out(place, variables)}
    # `>` listens to all; what begins with $ or _ belongs to the server and the client.
    return {word for word in found if re.fullmatch(r"[A-Za-z][\w-]*", word)}


def spelled_out(  # noqa: PLR0911 (one for each kind of expression)
    expression: ast.expr, variables: dict[str, list[ast.expr]]
) -> set[str]:
    match expression:
        case ast.Constant(value=str(subject)):
            return {subject}
        case ast.JoinedStr(values=[ast.Constant(value=str(beginning)), *_]):
            return {beginning} if "." in beginning else set()
        case ast.Call(func=ast.Attribute(attr="name"), args=[ast.Constant(value=str(subject))]):
            return {subject}  # section.name("price.work")
        case ast.Name(id=name):
            known = {other: values for other, values in variables.items() if other != name}
            return set().union(*(spelled_out(value, known) for value in variables.get(name, [])))
        case ast.List(elts=elements) | ast.Tuple(elts=elements):
            return set().union(*(spelled_out(element, variables) for element in elements))
        case ast.Dict(keys=keys):
            return set().union(*(spelled_out(key, variables) for key in keys if key))
        case ast.Starred(value=value):
            return spelled_out(value, variables)
    return set()


def has_a_cluster_of_its_own(lesson: Lesson) -> bool:
    """It asks for regions or for TLS, which no cluster that is shared has: it never meets another."""
    starts = [
        call
        for name, call in lesson.calls()
        if name == "start" and getattr(getattr(call.func, "value", None), "id", "") == "Lab"
    ]
    return bool(starts) and all(
        keyword(call, "regions") or keyword(call, "secure") for call in starts
    )


@pytest.mark.parametrize("names", [names_of_streams, first_words_of_subjects])
def test_no_two_lessons_share_a_name(names: Callable[[Lesson], set[str]]) -> None:
    owners: dict[str, set[int]] = {}
    for path in [*LESSONS, *SOLUTIONS]:
        lesson = Lesson(path)
        if has_a_cluster_of_its_own(lesson):
            continue
        for name in names(lesson):
            owners.setdefault(name, set()).add(lesson.number)
    shared = {name: sorted(who) for name, who in owners.items() if len(who) > 1}
    assert owners and not shared


# The rules themselves: each of these changes to a good lesson is seen.

CHANGES: dict[str, tuple[str, str]] = {
    # what is appended to the last code cell: what the rules say
    "print(1);": "ends with a semicolon",
    "import time\ntime.sleep(1)": "time.sleep stops every handler",
    "asyncio.run(main())": "awaits at top level",
    "try:\n    pass\nexcept:\n    pass": "a bare except",
    "print(In[-1])": "`In` is empty where nbval runs the cells",
    "await js.add_stream(name='X')": "add_stream without description=lab.mark",
    "await js.create_key_value(bucket='X', description='mine')": "create_key_value without",
    "StreamConfig(name='X')": "StreamConfig without",
    "await retry(js.publish, 'x', {'Nats-Msg-Id': '7'})": "does not know error 10158",
    "lab.write_module('shop.py')": "shop.py: cells begin with its name",
    "async def f(work): ...\nasync def g(): ...\nawait f(g())": "hand over the function, not g()",
    "x = 1\n" * 26: "lines, at most 25",
    "await lab.kill('n1')": "the event of a drill is not kept",
    "gone = await lab.kill('n1')\ncheck('nothing is lost', True)": "no claim names what the drill 'gone'",
    "check('it is fast', fast, timed=True)": "a timed claim compares two values",
}
PROSE: dict[str, str] = {
    # what is appended to the last markdown cell: what the rules say
    "## After\n\n#### Deep": "a heading of level 4 follows one of level 2",
    "# Another title": "there is one # heading",
    "[there](#recap)": "a link into the notebook itself",
    "[there](00_nowhere.ipynb)": "the link to 00_nowhere.ipynb leads nowhere",
    "![](img/01.png)": "has no alternative text",
    "![chart](https://example.org/a.png)": "is not in the repository",
    "<details>": "<details>",
    "```mermaid\n```": "a Mermaid diagram",
    "word " * 2200: "words, 700 to 2,200",
}
OUTPUTS: dict[str, str] = {
    # what the last code cell prints: what the rules say
    "\x1b[31mred": "prints in colour",
    "<Client object at 0x7f1234567890>": "prints the address of an object",
    f"{ROOT}/lib": "prints a path of this machine",
}


@pytest.mark.parametrize(
    ("kind", "added", "said"),
    [
        *(("code", added, said) for added, said in CHANGES.items()),
        *(("markdown", added, said) for added, said in PROSE.items()),
        *(("output", added, said) for added, said in OUTPUTS.items()),
    ],
    ids=lambda value: value.strip()[:30],
)
def test_a_bad_change_is_seen(tmp_path: Path, kind: str, added: str, said: str) -> None:
    good = NOTEBOOKS / "01_pub_sub.ipynb"
    notebook = json.loads(good.read_text(encoding="utf-8"))
    cells = [c for c in notebook["cells"] if c["cell_type"] == kind.replace("output", "code")]
    if kind == "output":
        cells[-1]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": added}]
    else:
        cells[-1]["source"] = f"{text(cells[-1]['source'])}\n{added}"
    bad = tmp_path / "notebooks" / good.name
    bad.parent.mkdir()
    for other in ("img", *(path.name for path in LESSONS), "solutions"):
        (bad.parent / other).symlink_to(NOTEBOOKS / other)
    (tmp_path / "README.md").touch()
    bad.unlink()
    bad.write_text(json.dumps(notebook), encoding="utf-8")
    wrong = [what for rule in RULES for what in rule(Lesson(bad))]
    assert any(said in what for what in wrong), wrong
    before = [what for rule in RULES for what in rule(Lesson(good))]
    assert not any(said in what for what in before)


@pytest.mark.parametrize(
    ("comment", "said"),
    [
        ("# workshop: 9, at least 2", ""),
        ("# workshop: 9", "n states no minimum"),
        ("# workshop: 2, at least 3", "n is 2 at one of the scales, at least 3"),
        ("# workshop: 9, at least 6", "n is 5 at one of the scales, at least 6"),
    ],
)
def test_a_parameter_below_its_minimum_is_seen(tmp_path: Path, comment: str, said: str) -> None:
    cell = {
        "cell_type": "code",
        "source": f"n: int = 5  {comment}",
        "metadata": {"tags": ["parameters"]},
    }
    (tmp_path / "01_some.ipynb").write_text(json.dumps({"cells": [cell]}), encoding="utf-8")
    found = list(minima(Lesson(tmp_path / "01_some.ipynb")))
    assert [said in what for what in found] == ([True] if said else [])
