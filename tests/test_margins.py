"""The margins recorder: both sides of what a cell prints and checks, exactly as they were."""

import json
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell
from natslab import check, margins


@pytest.mark.parametrize(
    ("left", "sign", "right", "factor"),
    [
        (2, "<", 10, 5),
        (10, ">=", 2, 5),
        (10, "<", 2, 0.2),
        (0, "<", 1, float("inf")),
        (0, ">", 0, 0),
    ],
)
def test_room(left: float, sign: str, right: float, factor: float) -> None:
    assert margins.room(left, sign, right) == factor


def test_cells_note_their_comparisons(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    shell, file = InteractiveShell(), tmp_path / "margins.jsonl"
    margins.record(shell, file)
    shell.user_ns |= {"check": check, "left": [3]}
    for cell in (
        "x = 1 < 2",  # neither printed nor checked
        "print('under nine:', left.pop() < 9)",  # evaluated once
        "check('between', 1 <= 2 < 8, timed=True)",
        "print('words:', 'a' < 'b', 'equal:', 1 == 1)",  # no numbers, no order
        "print(3 > 4 > 5)",
    ):
        assert shell.run_cell(cell).success
    assert capsys.readouterr().out.splitlines() == [
        "under nine: True",
        "✔ between",
        "words: True equal: True",
        "False",
    ]
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(row["claim"], row["source"], row["timed"], row["room"]) for row in rows] == [
        ("under nine:", "left.pop() < 9", False, 3.0),
        ("between", "1 <= 2 < 8", True, 2.0),
        ("", "3 > 4 > 5", False, 0.75),
    ]
    InteractiveShell.clear_instance()
