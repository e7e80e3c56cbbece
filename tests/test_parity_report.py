"""Claims about ``tests/PARITY.md``, the table of deviations from the original."""

import pytest
from parity import PARITY
from parity_report import COMMAND, HEADER, OUTPUT, Row, identities, rows, table


def test_the_committed_table_names_its_command_and_holds_no_deviation_above_its_limit():
    document = OUTPUT.read_text()
    assert COMMAND in document.splitlines()[0]
    lines = [line.strip("| ").split(" | ") for line in document.splitlines() if line.startswith(("| ls_", "| mv_"))]
    assert len(lines) > 80
    assert all(len(cells) == len(HEADER) and float(cells[3]) <= float(cells[4]) for cells in lines)


@pytest.mark.slow
def test_the_committed_table_has_the_rows_of_today_and_they_keep_their_limits():
    if not PARITY.is_dir():
        pytest.skip("../shared/parity is not beside this checkout")
    found = rows()
    assert identities(OUTPUT.read_text()) == [row.identity for row in found]
    assert [row for row in found if not row.within_limit] == []


def test_a_row_is_known_by_what_no_machine_changes():
    row, elsewhere = Row("case", "stage", "largest", 1.2e-6, 1e-4), Row("case", "stage", "largest", 3e-5, 1e-4)
    assert identities(table([row])) == [elsewhere.identity] == [("case", "stage", "largest", "1e-04")]
    assert not Row("case", "stage", "largest", float("nan"), 1e-4).within_limit
