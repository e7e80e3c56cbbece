"""Claims about an evaluation: which entries in which order, whose numbers, and what survives being interrupted."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation.scored_rooms import INDEX, NASTY, ORDER, SIZE, indexed_scenes, random_network, write_dataset
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from lsplat_ns.data.batches import make_example
from lsplat_ns.data.view_sampling import FrameChoice
from lsplat_ns.errors import ConfigError, LsplatError, SceneDataError
from lsplat_ns.evaluation import evaluate as module
from lsplat_ns.evaluation.entries import IndexedScenes, spread_out
from lsplat_ns.evaluation.evaluate import Evaluation, EvaluationOutcome, evaluate_entries, finish
from lsplat_ns.evaluation.image_folders import entry_folder, scene_folder_name
from lsplat_ns.evaluation.metrics import FoundMetrics, find_image_metrics
from lsplat_ns.evaluation.protocol import MEAN, NEAREST, OURS, SPLAT, draw_views, entry_seed, quantised, target_kinds
from lsplat_ns.evaluation.report import measured_notes
from lsplat_ns.evaluation.results import RESULTS, SUMMARY, EntryResult, EvaluationFolder, flat_results, read_results
from lsplat_ns.evaluation.timing import Stopwatch

SETTINGS = {"index": "evaluation_index.json", "draws": 1}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> IndexedScenes:
    return indexed_scenes(write_dataset(tmp_path_factory.mktemp("data") / "d"))


@pytest.fixture(scope="module")
def evaluation(data: IndexedScenes) -> Evaluation:
    return Evaluation(random_network(), data, find_image_metrics(("psnr", "ssim")))


@pytest.fixture(scope="module")
def finished(evaluation: Evaluation, tmp_path_factory: pytest.TempPathFactory) -> tuple[EvaluationOutcome, dict]:
    """An evaluation from beginning to end."""
    outcome = evaluate_entries(evaluation, EvaluationFolder(tmp_path_factory.mktemp("e") / "whole", SETTINGS))
    return outcome, finish(evaluation, outcome, distances=False)


# --------------------------------------------------------------------------------------------- what is evaluated


def test_every_entry_of_the_index_is_used_or_named_with_its_reason(finished: tuple[EvaluationOutcome, dict]) -> None:
    outcome, summary = finished
    assert [result.scene for result in read_results(outcome.folder.root)] == ORDER[:-1]  # scene by scene, as stored
    for result in read_results(outcome.folder.root):
        assert {"context": list(result.context), "target": list(result.target)} in INDEX[result.scene]
    assert summary["skipped"].keys() == {"empty", "elsewhere", "short (0, 2 → 1, 90)"}
    assert summary["skipped"]["empty"] == "the index has no entry for it"
    assert summary["skipped"]["elsewhere"] == "not in the data"
    assert "90" in summary["skipped"]["short (0, 2 → 1, 90)"]
    assert (summary["entries"], summary["targets"]) == (4, 8)
    assert summary["listed"] == {"entries": 5, "scenes": 6} and summary["complete"]
    assert summary["targets_that_are_context_views"] == 1
    assert summary["unavailable"] == {"fid": "not asked for", "kid": "not asked for"}


def with_index(root: Path, **scenes: list[tuple[tuple[int, ...], tuple[int, ...]]]) -> IndexedScenes:
    """The dataset with another index: context and target frames by scene."""
    index = {scene: [{"context": c, "target": t} for c, t in listed] for scene, listed in scenes.items()}
    write_dataset(root).joinpath("evaluation_index.json").write_text(json.dumps(index))
    return indexed_scenes(root)


def test_left_out_entries_of_one_pair_are_all_named(evaluation: Evaluation, tmp_path: Path) -> None:
    data = with_index(tmp_path / "d", late=[((1, 4), (2,)), ((1, 3), (50,)), ((1, 3), (60, 70))])
    one = replace(evaluation, data=data)
    summary = finish(one, evaluate_entries(one, EvaluationFolder(tmp_path / "e", SETTINGS)), distances=False)
    assert (summary["entries"], summary["listed"]["entries"]) == (1, 3)
    assert summary["skipped"].keys() == {"late (1, 3 → 50)", "late (1, 3 → 60, 70)"}


def test_entries_that_repeat_an_earlier_one_are_left_out_and_named(evaluation: Evaluation, tmp_path: Path) -> None:
    listed = [((1, 4), (2, 3)), ((4, 1), (3,)), ((1, 4), (2, 3)), ((1, 4), (3, 2)), ((1, 4), (2, 3))]
    data = with_index(tmp_path / "d", late=listed)
    assert [entry.key for entry in data.entries] == [("late", *listed[0])]
    one = replace(evaluation, data=data)
    summary = finish(one, evaluate_entries(one, EvaluationFolder(tmp_path / "e", SETTINGS)), distances=False)
    assert (summary["entries"], summary["listed"]) == (1, {"entries": 5, "scenes": 1})
    assert summary["skipped"].keys() == {
        "late (4, 1 → 3), entry 2 of the scene",
        "late (1, 4 → 2, 3), entry 3 of the scene",
        "late (1, 4 → 3, 2), entry 4 of the scene",
        "late (1, 4 → 2, 3), entry 5 of the scene",
    }
    assert all("repeats views of an earlier entry" in why for why in summary["skipped"].values())


def test_several_entries_of_one_pair_are_kept_as_published_indices_have_them(tmp_path: Path) -> None:
    listed = [((4, 1), (5, 0)), ((4, 1), (0, 2)), ((1, 4), (3,)), ((1, 3), (0, 2)), ((4, 1), (5,))]
    data = with_index(tmp_path / "d", late=listed, early=[((1, 4), (3,))])
    assert [entry.key[1:] for entry in data.entries if entry.scene == "late"] == listed
    assert len(data.entries) == 6 and data.repeated == {}


def test_an_index_without_any_scene_of_the_data_is_refused(data: IndexedScenes, tmp_path: Path) -> None:
    root = write_dataset(tmp_path / "d")
    (root / "evaluation_index.json").write_text('{"elsewhere": [{"context": [0, 1], "target": [2]}]}')
    with pytest.raises(SceneDataError, match=r"no scene of the evaluation index evaluation_index.json is in the data"):
        indexed_scenes(root)


def test_few_entries_are_evenly_spread(data: IndexedScenes) -> None:
    assert spread_out(10, 4) == [0, 2, 5, 7] and spread_out(3, 9) == [0, 1, 2] and spread_out(5, 0) == []
    assert [entry.scene for entry in data.thinned(2).entries] == [ORDER[0], ORDER[2]]


def test_targets_between_the_context_views_are_interpolated_on_a_turntable_across_its_seam(data: IndexedScenes) -> None:
    video = data.read_scene("late")  # six frames
    choice = FrameChoice((4, 1), (1, 2, 5, 0))
    assert target_kinds(video, choice) == ("interpolation", "interpolation", "extrapolation", "extrapolation")
    choice = FrameChoice((5, 1), (0, 5, 3, 2))
    inside = ("interpolation", "interpolation", "extrapolation", "extrapolation")
    assert target_kinds(replace(video, circular=True), choice) == inside


# ----------------------------------------------------------------------------------------------------- the numbers


def test_numbers_are_those_of_the_png_files_measured_and_averaged_independently(
    data: IndexedScenes, finished: tuple[EvaluationOutcome, dict]
) -> None:
    outcome, summary = finished
    means: dict[str, list[float]] = {"psnr": [], "ssim": []}
    for entry in data.entries[:-1]:
        truth = make_example(data.read_scene(entry.scene), entry.choice, data.preparation).target.image[0].numpy()
        measured = []
        for image, frame in zip(truth, entry.choice.target, strict=True):
            left, right = sorted(entry.choice.context)
            path = outcome.folder.predictions / scene_folder_name(entry.scene) / f"{left}_{right}" / "color"
            picture = np.asarray(Image.open(path / f"{frame:06d}.png"), np.float32).transpose(2, 0, 1) / 255
            measured.append(
                (
                    peak_signal_noise_ratio(image, picture, data_range=1),
                    structural_similarity(
                        image, picture, win_size=11, gaussian_weights=True, channel_axis=0, data_range=1.0
                    ),
                )
            )
        for name, values in zip(means, zip(*measured, strict=True), strict=True):
            means[name].append(float(np.mean(values)))  # over an entry's targets first, then over entries
    for name, values in means.items():
        found = summary["metrics"]["all"][OURS][name]
        assert found["mean"] == pytest.approx(np.mean(values), abs=1e-5)
        assert found["std"] == pytest.approx(np.std(values), abs=1e-5) and found["count"] == 4
    scene = summary["scenes"]["early"]
    assert scene["entries"] == 2 and scene["psnr"] == pytest.approx(np.mean(means["psnr"][:2]), abs=1e-5)


def test_pictures_are_cut_off_to_8_bits_and_lie_as_the_originals_scripts_expect(
    evaluation: Evaluation, finished: tuple[EvaluationOutcome, dict]
) -> None:
    values = torch.tensor([-0.2, 0.999, 0.5, 1.3])
    assert (255 * quantised(values)).tolist() == [0, 254, 127, 255]
    outcome, data = finished[0], evaluation.data
    entry = data.entries[0]
    example = data.load(entry).example
    seed = entry_seed(entry.scene, entry.choice.context)
    drawn = draw_views(evaluation.network, example, seed=seed, deterministic=False).image[0]
    written = np.asarray(Image.open(outcome.folder.predictions / "early" / "1_3" / "color" / "000002.png"))
    assert np.array_equal(written, (255 * drawn.clamp(0, 1)).floor().byte().permute(1, 2, 0).numpy())
    for root, kind, frame, image in (("truth", "color", 2, example.target.image[0, 0]),
                                     ("truth", "context", 1, example.context.image[0, 0])):  # fmt: skip
        stored = np.asarray(Image.open(outcome.folder.root / "images" / root / "early/1_3" / kind / f"{frame:06d}.png"))
        assert np.array_equal(stored, (255 * image).round().byte().permute(1, 2, 0).numpy())
    benchmark = json.loads((outcome.folder.predictions / "benchmark.json").read_text())
    counts = {part: len(seconds) for part, seconds in benchmark.items()}
    assert counts == {"encoder": 4, "decoder": 8, "autoencoder_decoder": 8}
    assert min(value for seconds in benchmark.values() for value in seconds) > 0


def test_no_scene_id_leaves_the_folder_and_no_two_share_one() -> None:
    ids = ["..", ".", "a/b", "a%2Fb", NASTY, "../../up", "a b", "ä"]
    folders = [entry_folder(Path("/root"), scene, (4, 2)) for scene in ids]
    assert len(set(folders)) == len(ids)
    for folder in folders:
        assert folder.resolve().parent.parent == Path("/root") and folder.name == "2_4"


def test_yardsticks_are_copies_of_context_views(data: IndexedScenes, finished: tuple[EvaluationOutcome, dict]) -> None:
    result = finished[0].folder.done[data.entries[1].key]  # context 1 and 3, targets 0, 3 and 5
    example = data.load(data.entries[1]).example
    first, second = example.context.image[0].numpy()
    truth = example.target.image[0].numpy()
    nearest = result.metrics[NEAREST]["psnr"]
    assert nearest[0] == pytest.approx(peak_signal_noise_ratio(truth[0], first, data_range=1), abs=1e-4)
    assert nearest[1] is None  # the picture itself
    mean = np.floor(255 * (first + second) / 2 + 1e-4) / 255
    wanted = peak_signal_noise_ratio(truth[0], mean, data_range=1)
    assert result.metrics[MEAN]["psnr"][0] == pytest.approx(wanted, abs=1e-4)
    assert result.mean(NEAREST, "psnr") == pytest.approx(np.mean([nearest[0], nearest[2]]))
    assert result.distances == (1, 0, 2) and result.kinds == ("extrapolation", "interpolation", "extrapolation")
    assert result.mean(OURS, "psnr", "interpolation") == result.metrics[OURS]["psnr"][1]
    assert result.metrics[SPLAT].keys() == result.metrics[OURS].keys()


def test_an_entrys_numbers_do_not_depend_on_what_came_before_and_more_draws_are_averaged(
    evaluation: Evaluation,
) -> None:
    entry = evaluation.data.entries[3]
    example = evaluation.data.load(entry).example
    alone, again = evaluation.score(entry, example), evaluation.score(entry, example)
    assert torch.equal(alone.metrics[OURS]["psnr"], again.metrics[OURS]["psnr"]) and alone.draw_std == {}
    three = replace(evaluation, draws=3).score(entry, example)
    seed, singles = entry_seed(entry.scene, entry.choice.context), []
    for number in range(3):
        drawn = draw_views(evaluation.network, example, seed=seed + number, deterministic=False).image
        singles.append(evaluation.metrics.measure(quantised(drawn), example.target.image[0])["psnr"])
    torch.testing.assert_close(three.metrics[OURS]["psnr"], torch.stack(singles).mean(0))
    assert three.draw_std["psnr"] == pytest.approx(np.std([float(one.mean()) for one in singles]), rel=1e-3)
    modes = replace(evaluation, draws=0)
    assert torch.equal(modes.score(entry, example).images, replace(modes, seed=5).score(entry, example).images)
    other = replace(evaluation, seed=5).score(entry, example)
    assert not torch.equal(other.images, alone.images)


def test_times_are_taken_between_synchronisations(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    clock = iter([1.0, 3.5, 10.0, 10.25])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: said.append(str(device)))
    monkeypatch.setattr("time.perf_counter", lambda: said.append("clock") or next(clock))
    watch = Stopwatch(torch.device("cuda:1"))
    for _ in range(2):
        with watch.part("encode"):
            said.append("work")
    assert said == ["cuda:1", "clock", "work", "cuda:1", "clock"] * 2 and watch.seconds == {"encode": 2.75}


def test_the_first_entry_is_run_once_before_it_is_timed(evaluation: Evaluation, tmp_path: Path) -> None:
    told: list[str] = []

    def noting(*given: object, **options: object) -> object:
        told.append("warm-up")
        return draw_views(*given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "draw_views", noting)
        folder = EvaluationFolder(tmp_path / "e", SETTINGS)
        evaluate_entries(evaluation, folder, on_entry=lambda *_: told.append("entry"))
    assert told == ["warm-up"] + ["entry"] * 5


# ------------------------------------------------------------------------------------------- being interrupted


def without_times(summary: dict) -> dict:
    return {name: value for name, value in summary.items() if name != "seconds"}


def interrupting(after: int) -> Callable[[int, EntryResult | None], None]:
    def on_entry(done: int, result: EntryResult | None) -> None:
        if done == after:
            raise KeyboardInterrupt

    return on_entry


def test_an_interrupted_evaluation_goes_on_where_it_stopped_and_ends_with_the_same_numbers(
    evaluation: Evaluation, finished: tuple[EvaluationOutcome, dict], tmp_path: Path
) -> None:
    root = tmp_path / "e"
    outcome = evaluate_entries(evaluation, EvaluationFolder(root, SETTINGS), on_entry=interrupting(2))
    assert not outcome.finished
    partial = finish(evaluation, outcome)
    assert not partial["complete"] and partial["entries"] == 2 and partial["listed"]["entries"] == 5
    assert partial["unavailable"] == {"fid": "the evaluation is not finished", "kid": "the evaluation is not finished"}
    with (root / RESULTS).open("a") as file:
        file.write('{"scene": "late", "conte')  # killed while writing

    told: list[int] = []
    folder = EvaluationFolder(root, SETTINGS)
    outcome = evaluate_entries(evaluation, folder, on_entry=lambda done, _: told.append(done))
    assert told == [3, 4, 5] and outcome.finished
    assert without_times(finish(evaluation, outcome, distances=False)) == without_times(finished[1])

    whole = (root / SUMMARY).read_bytes()
    outcome = evaluate_entries(evaluation, EvaluationFolder(root, SETTINGS))
    finish(evaluation, outcome, distances=False)
    assert (root / SUMMARY).read_bytes() == whole


def test_an_interruption_before_the_first_entry_says_so(evaluation: Evaluation, tmp_path: Path) -> None:
    outcome = EvaluationOutcome(EvaluationFolder(tmp_path / "e", SETTINGS))
    with pytest.raises(LsplatError, match="it was interrupted before the first"):
        finish(evaluation, outcome)


def test_a_metric_that_could_not_be_computed_before_is_computed_then(evaluation: Evaluation, tmp_path: Path) -> None:
    root, one = tmp_path / "e", replace(evaluation, data=evaluation.data.thinned(1))
    poor = replace(one, metrics=FoundMetrics(find_image_metrics(("psnr",)).available, {"ssim": "why"}))
    first = finish(poor, evaluate_entries(poor, EvaluationFolder(root, SETTINGS)), distances=False)
    assert first["unavailable"]["ssim"] == "why" and "ssim" not in first["metrics"]["all"][OURS]
    second = finish(one, evaluate_entries(one, EvaluationFolder(root, SETTINGS)), distances=False)
    assert "ssim" not in second["unavailable"] and second["metrics"]["all"][OURS]["ssim"]["count"] == 1
    third = finish(poor, evaluate_entries(poor, EvaluationFolder(root, SETTINGS)), distances=False)
    assert "ssim" not in third["unavailable"] and third["metrics"] == second["metrics"]


def test_another_evaluation_or_other_files_in_the_folder_are_refused(
    evaluation: Evaluation, finished: tuple[EvaluationOutcome, dict], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"holds an evaluation with draws 1, not 3; choose another folder"):
        EvaluationFolder(finished[0].folder.root, {**SETTINGS, "draws": 3})
    with pytest.raises(ConfigError, match=r"holds an evaluation of other entries; choose another folder"):
        EvaluationFolder(EvaluationFolder(tmp_path / "e", {"entries_sha256": "0"}).root, {"entries_sha256": "1"})
    (tmp_path / "e" / "settings.json").write_text("{}")  # what an earlier version did not note
    with pytest.raises(ConfigError, match=r"does not note its draws \(by an earlier version, or of another system\)"):
        EvaluationFolder(tmp_path / "e", {"draws": 3})
    shutil.rmtree(tmp_path / "e")
    (tmp_path / "mine.txt").write_text("letters")
    with pytest.raises(ConfigError, match="is not an evaluation"):
        EvaluationFolder(tmp_path, SETTINGS)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_what_a_killed_call_left_of_its_first_file_does_not_make_the_folder_unusable(tmp_path: Path) -> None:
    left = tmp_path / ".settings.json.partial-4242"
    left.write_text("{")
    assert EvaluationFolder(tmp_path, SETTINGS).done == {}
    assert json.loads((tmp_path / "settings.json").read_text()) == SETTINGS


@pytest.mark.parametrize("lost", ["prediction/early/1_3/color/000005.png", "truth/early/1_3/color/000002.png",
                                  "truth/late/0_4/context/000004.png"])  # fmt: skip
def test_an_entry_whose_pictures_are_gone_is_evaluated_again(
    lost: str, evaluation: Evaluation, finished: tuple[EvaluationOutcome, dict], tmp_path: Path
) -> None:
    root = shutil.copytree(finished[0].folder.root, tmp_path / "e")
    file = root / "images" / lost
    before = file.read_bytes()
    file.unlink()
    again: list[EntryResult | None] = []
    folder = EvaluationFolder(root, SETTINGS)
    outcome = evaluate_entries(evaluation, folder, on_entry=lambda _, result: again.append(result))
    assert file.read_bytes() == before
    assert [result.scene for result in again if result] == [lost.split("/")[1]]  # and one that cannot be used
    assert without_times(finish(evaluation, outcome, distances=False)) == without_times(finished[1])


def test_a_full_disk_ends_with_one_line_and_keeps_what_is_there(
    evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = EvaluationFolder(tmp_path / "e", SETTINGS)
    evaluate_entries(evaluation, folder, on_entry=interrupting(1))
    before = {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file()}

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full)
        with pytest.raises(LsplatError, match=r"cannot write .*No space left on device"):
            evaluate_entries(evaluation, folder)
    assert {path: path.read_bytes() for path in folder.root.rglob("*") if path.is_file()} == before


# -------------------------------------------------------------------------------------------------- FID, ns-eval


def test_fid_and_kid_compare_predictions_with_the_true_views_of_the_same_entries(
    evaluation: Evaluation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    class Colours:
        def __init__(self, device: torch.device) -> None: ...

        def __call__(self, images: torch.Tensor) -> torch.Tensor:
            seen.append(images)
            return images.float().mean((2, 3))

    monkeypatch.setattr(module, "Inception", Colours)
    outcome = evaluate_entries(evaluation, EvaluationFolder(tmp_path / "e", SETTINGS))
    summary = finish(evaluation, outcome)
    found = summary["distances"]
    assert found["images"] == 8 and found["fid"] > 0 and math.isfinite(found["kid"]) and not summary["unavailable"]
    (note,) = measured_notes(summary)
    assert note.startswith("FID and KID are of 8 images: below 2048")
    truths = torch.cat([evaluation.data.load(entry).example.target.image[0] for entry in evaluation.data.entries[:-1]])
    assert torch.equal(seen[1], (255 * truths).round().byte()) and seen[0].shape == (8, 3, *SIZE)
    assert not [path for path in outcome.folder.root.iterdir() if path.name.startswith(".")]


def test_ns_eval_gets_the_same_means_by_their_bare_names(finished: tuple[EvaluationOutcome, dict]) -> None:
    summary = finished[1]
    flat = flat_results(summary, everything=True)
    scored = summary["metrics"]["all"]
    assert flat["psnr"] == scored[OURS]["psnr"]["mean"] and flat["psnr_std"] == scored[OURS]["psnr"]["std"]
    assert flat["psnr_splat"] == scored[SPLAT]["psnr"]["mean"] and flat["skipped"] == summary["skipped"]
    short = flat_results(summary, everything=False)
    assert short.keys() == {"entries", "psnr", "ssim", "psnr_splat", "ssim_splat"}
    assert all(isinstance(value, float) for value in short.values())
    json.dumps(flat, allow_nan=False)
