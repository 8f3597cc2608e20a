"""The parameters of a lesson: what its cell states, and what is refused."""

import subprocess
import sys

import helpers
import pytest
from IPython.core.interactiveshell import InteractiveShell
from natslab import LabError
from natslab import parameters as p

SOURCE = (
    "n_jobs: int = 240  # workshop: 1_500, at least 6\n"
    "rate: float = 0.5  # as fast as a person, workshop: 2.5, conference: 9, at least 0.1\n"
    "name: str = 'a'  # workshop: 'b'\n"
    "fixed: int = 3\n"
    "there: bool = True\n"
    "x = 1  # at least 5\n"
)
KNOWN = p.stated(SOURCE)


def test_what_a_cell_states() -> None:
    assert {
        "n_jobs": p.Parameter("int", 240, {"workshop": 1500}, 6),
        "rate": p.Parameter("float", 0.5, {"workshop": 2.5, "conference": 9}, 0.1),
        "name": p.Parameter("str", "a", {"workshop": "b"}),
        "fixed": p.Parameter("int", 3),
        "there": p.Parameter("bool", True),
    } == KNOWN
    assert p.stated("") == p.stated("print('n: int = 3')") == {}


def test_at_scale() -> None:
    assert p.at_scale(KNOWN, "workshop") == {"n_jobs": 1500, "rate": 2.5, "name": "b"}
    assert p.at_scale(KNOWN, "conference") == {"rate": 9}
    assert p.at_scale(KNOWN, "") == p.at_scale({}, "") == {}


@pytest.mark.parametrize("scale", ["worksop", "work(", "work", ".*", "person"])
def test_an_unknown_scale_is_refused_and_the_known_ones_are_named(scale: str) -> None:
    with pytest.raises(LabError) as error:
        p.at_scale(KNOWN, scale)
    assert str(error.value) == f"There is no scale {scale!r}; there is: conference, workshop."
    with pytest.raises(LabError, match="there is: none"):
        p.at_scale({}, scale)


def test_typed() -> None:
    words = ["n_jobs=1_000", "rate=3", "name=a=b", "there=False", "fixed=-1"]
    values = p.typed(KNOWN, words)
    assert values == {"n_jobs": 1000, "rate": 3.0, "name": "a=b", "there": False, "fixed": -1}
    assert [type(value) for value in values.values()] == [int, float, str, bool, int]


@pytest.mark.parametrize(
    ("word", "said"),
    [
        (
            "n_job=3",
            "There is no parameter 'n_job'; there is: n_jobs, rate, name, fixed, there.",
        ),
        ("n_jobs", "'n_jobs' is no parameter: write name=value."),
        ("n_jobs=0.5", "n_jobs is a whole number, and '0.5' is not."),
        ("n_jobs=", "n_jobs is a whole number, and '' is not."),
        ("rate=fast", "rate is a number, and 'fast' is not."),
        ("there=0", "there is True or False, and '0' is not."),
    ],
)
def test_what_is_no_parameter(word: str, said: str) -> None:
    with pytest.raises(LabError) as error:
        p.typed(KNOWN, [word])
    assert str(error.value) == said


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"n_jobs": 0}, "n_jobs is 0, this lesson needs at least 6"),
        ({"n_jobs": -5}, "n_jobs is -5, this lesson needs at least 6"),
        ({"n_jobs": 5}, "n_jobs is 5, this lesson needs at least 6"),
        ({"n_jobs": 6.5}, "n_jobs is 6.5, this lesson needs a whole number of at least 6"),
        ({"n_jobs": "9"}, "n_jobs is '9', this lesson needs a whole number of at least 6"),
        ({"rate": 0.09}, "rate is 0.09, this lesson needs at least 0.1"),
        ({"rate": float("nan")}, "rate is nan, this lesson needs at least 0.1"),
        ({"rate": float("inf")}, "rate is inf, this lesson needs at least 0.1"),
    ],
)
def test_what_is_below_its_minimum_is_refused(values: dict, said: str) -> None:
    with pytest.raises(LabError) as error:
        p.refuse_impossible([SOURCE], values)
    assert str(error.value) == f"{said}: change it in the first code cell and run from there."


def test_the_minimum_itself_is_enough() -> None:
    p.refuse_impossible([SOURCE], {"n_jobs": 6, "rate": 0.1, "fixed": -1})
    p.refuse_impossible([SOURCE], {"rate": 1})
    p.refuse_impossible([SOURCE, "print(1)"], {})
    with pytest.raises(LabError, match="n_jobs is 2, this lesson needs at least 6"):
        p.refuse_impossible(["n_jobs: int = 2  # at least 6"], {})


def test_in_a_notebook_the_value_that_holds_is_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = InteractiveShell()
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    p.refuse_impossible_here()
    shell.run_cell("n_jobs: int = 240  # at least 6", store_history=True)
    p.refuse_impossible_here()
    shell.run_cell("n_jobs = 0  # as papermill does", store_history=True)
    with pytest.raises(LabError, match="n_jobs is 0"):
        p.refuse_impossible_here()
    shell.run_cell("n_jobs: int = 3  # at least 6", store_history=True)
    with pytest.raises(LabError, match="n_jobs is 3"):
        p.refuse_impossible_here()
    shell.run_cell("n_jobs: int = 6  # at least 6", store_history=True)
    p.refuse_impossible_here()


def test_outside_a_notebook_nothing_is_judged() -> None:
    code = (
        "import sys; from natslab.parameters import refuse_impossible_here as refuse\n"
        "assert 'IPython' not in sys.modules; refuse(); import IPython; refuse()"
    )
    subprocess.run(
        [sys.executable, "-c", code], check=True, env=helpers.clean_environment(), timeout=60
    )
