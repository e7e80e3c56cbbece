"""Claims about published numbers: those of the anchors, with a source, compared only where they may be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from lsplat_ns.evaluation.published import EXTRAPOLATION, INTERPOLATION, TABLES, TIMES, tables_for
from lsplat_ns.evaluation.report import published_rows

ANCHORS = Path(__file__).resolve().parents[3] / "shared" / "reference" / "anchors.md"


@pytest.mark.skipif(not ANCHORS.is_file(), reason="the collected anchors are not here")
def test_every_published_number_stands_in_the_anchors_in_the_row_of_its_method() -> None:
    lines = [line for line in ANCHORS.read_text().splitlines() if line.startswith("|")]
    for table in TABLES:
        for row in table.rows:
            rows = [line for line in lines if row.method in line]
            numbers = [set(map(float, re.findall(r"\d+\.\d+", line))) for line in rows]
            assert any(set(row.metrics.values()) <= found for found in numbers), row


def test_every_row_has_a_source_and_only_latentsplats_a_tolerance() -> None:
    for table in TABLES:
        assert table.targets == 3 * table.pairs
        for row in table.rows:
            assert row.source and row.mark in ("paper", "repository", "third party")
            assert row.tolerance.keys() == (row.metrics.keys() if row.method == "latentSplat" else set())
    assert all(time.source for time in TIMES)


def test_a_measured_number_is_within_or_outside_only_where_the_row_is_this_projects() -> None:
    ours, other = EXTRAPOLATION.rows[:2]
    assert ours.verdict("psnr", 22.7) and not ours.verdict("psnr", 22.75) and not ours.verdict("psnr", 22.5)
    assert ours.verdict("fid", 3.0) and ours.verdict("kid", 0.1) is None and other.verdict("psnr", 21.84) is None


def test_a_report_judges_latentsplats_row_on_the_published_index_and_nothing_elsewhere() -> None:
    settings = {"index": "re10k_extra.json", "image_size": [256, 256]}
    measured = {"psnr": 22.65, "ssim": 0.70, "lpips": 0.196}
    verdicts = []
    for entries in (6424, 6000):
        group = published_rows(EXTRAPOLATION, {"settings": settings, "entries": entries, "targets": 19272}, measured)
        assert group["style"] == "published" and bool(group["remark"]) == (entries == 6000)
        verdicts.append([[cell.get("verdict") for cell in row["cells"]] for row in group["rows"]])
    nothing = [None] * 6
    assert verdicts[0] == [["within", "outside", "within", None, None, None], *[nothing] * 5]
    assert verdicts[1] == [nothing] * 6


def test_tables_compare_with_the_same_index_number_of_targets_and_size_only() -> None:
    exactly = ("re10k_extra.json", 6424, 19272, (256, 256))
    assert EXTRAPOLATION.differences(*exactly) == []
    for position, other in enumerate(("re10k_intra.json", 6423, 19269, (64, 64))):
        given = [*exactly[:position], other, *exactly[position + 1 :]]
        assert len(EXTRAPOLATION.differences(*given)) == 1
    assert tables_for("re10k", "re10k_extra.json", {"interpolation"}) == [EXTRAPOLATION]
    assert tables_for("re10k", "evaluation_index.json", {"interpolation", "extrapolation"}) == list(TABLES)
    assert tables_for("re10k", "re10k_intra.json", {"interpolation"}) == [INTERPOLATION]
    assert tables_for("co3d_hydrant", "co3d_hydrant_extra.json", {"extrapolation"}) == []
