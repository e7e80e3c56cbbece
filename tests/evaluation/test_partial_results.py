"""Results that lack something: entries measured with fewer metrics, entries that no network can take."""

from __future__ import annotations

import pytest

from lsplat_ns.data.batches import PreparationConfig
from lsplat_ns.data.view_sampling import FrameChoice
from lsplat_ns.errors import SceneDataError
from lsplat_ns.evaluation.entries import Entry, IndexedScenes
from lsplat_ns.evaluation.plots import quality_by_distance, quality_histograms
from lsplat_ns.evaluation.protocol import NEAREST, OURS
from lsplat_ns.evaluation.results import EntryResult


def result(frame: int, *metrics: str) -> EntryResult:
    values = {name: [20.0 + frame, None, 30.0 - frame] for name in metrics}
    target = (frame, frame + 1, frame + 2)
    return EntryResult("room", (0, 9), target, (), (1, 2, 3), {OURS: values, NEAREST: values}, {}, {})


def test_plots_of_entries_that_were_measured_with_different_metrics() -> None:
    results = [result(0, "psnr", "lpips"), result(3, "psnr")]  # Ctrl-C after the weights of LPIPS were found
    for plot in (quality_by_distance, quality_histograms):
        assert plot(results, ["psnr", "lpips"]).startswith("<svg")


@pytest.mark.parametrize(
    ("context", "target", "what"),
    [
        ((1,), (2,), "1 context view and 1 target;"),
        ((1, 5, 9), (2,), "3 context views and 1 target;"),
        ((1, 5), (), "2 context views and 0 targets;"),
    ],
)
def test_an_entry_that_the_network_cannot_take_is_left_out_by_name(
    context: tuple[int, ...], target: tuple[int, ...], what: str
) -> None:
    entry = Entry("room", FrameChoice(context, target))
    data = IndexedScenes("re10k", "index.json", (entry,), {}, PreparationConfig(), read_scene=pytest.fail)
    with pytest.raises(SceneDataError, match=f"scene room: .* {what}"):
        data.load(entry)
