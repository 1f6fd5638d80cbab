"""The table on disk: whole rows, each once."""

from pathlib import Path

import pytest

from trainer.errors import ContinualLoraError
from trainer.sweep.summary import summary
from trainer.sweep.table import Table

COLUMNS = ("name", "settings", "figure")
ROWS = [{"name": "a", "settings": '{"x": 1, "y": "é"}', "figure": 0.123456789}, {"name": "b", "figure": 2}]
TEXT = 'name,settings,figure\r\na,"{""x"": 1, ""y"": ""é""}",0.123457\r\nb,,2\r\n'


@pytest.fixture
def table(tmp_path: Path) -> Table:
    made = Table(tmp_path / "new" / "table.csv", COLUMNS)
    for row in ROWS:
        made.append(row)
    return made


def test_rows_are_written_and_read(table: Table) -> None:
    assert table.path.read_bytes() == TEXT.encode()
    expected = [{"name": "a", "settings": '{"x": 1, "y": "é"}', "figure": "0.123457"}]
    assert table.rows() == [*expected, {"name": "b", "settings": "", "figure": "2"}]
    table.mend()
    assert table.path.read_bytes() == TEXT.encode()


@pytest.mark.parametrize("length", range(len(TEXT.encode())))
def test_a_row_that_was_cut_off_is_no_row(table: Table, length: int) -> None:
    """Wherever the writing stopped: whole rows stay, the rest goes, and the next row begins a line of its own."""
    whole = TEXT.encode()[:length].rfind(b"\n") + 1
    table.path.write_bytes(TEXT.encode()[:length])
    before = table.rows()
    table.mend()
    assert table.path.read_bytes() == TEXT.encode()[:whole]
    assert table.rows() == before
    done = {row["name"] for row in before}
    for row in ROWS:
        if row["name"] not in done:
            table.append(row)
    assert table.path.read_bytes() == TEXT.encode()


def test_a_table_of_something_else_is_left_alone(table: Table) -> None:
    other = Table(table.path, ("name", "figure"))
    with pytest.raises(ContinualLoraError, match=r"the columns name, figure\. It has name, settings, figure\."):
        other.mend()
    assert table.path.read_bytes() == TEXT.encode()


def test_no_table_has_no_rows(tmp_path: Path) -> None:
    table = Table(tmp_path / "table.csv", COLUMNS)
    table.mend()
    assert table.rows() == [] and not table.path.exists()


def test_summary_by_hand() -> None:
    figures = [{"recipe": "lora", "a_mmd": "1", "peak_mb": "10"}, {"recipe": "lora", "a_mmd": "3", "peak_mb": "20"}]
    filled = [dict.fromkeys(HEADS, "") | row for row in [*figures, {"recipe": "lora_ewc"}]]
    head, _, lora, ewc = summary(filled, ["recipe"]).splitlines()
    cells = dict(zip(head.split("|"), lora.split("|"), strict=True))
    assert cells[" recipe "] == " lora " and cells[" seeds "] == " 2 "
    assert cells[" a_mmd "] == " 2 ± 1.41 " and cells[" peak_mb "] == " 15 "
    assert ewc.startswith("| lora_ewc | 1 |  |")


HEADS = ("a_mmd", "f_mmd", "bwt_mmd", "i2i", "new_mmd", "kid", "t2i", "dc_accuracy")
HEADS += ("seconds_per_task", "peak_mb", "state_bytes")
