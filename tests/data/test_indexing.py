from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import cut_in_half, plant_code, without_permission
from re10k_chunks import scene as stored_scene
from re10k_chunks import write as write_chunks

from lsplat_ns.cli import main
from lsplat_ns.data.indexing import describe, index_dataset, index_split
from lsplat_ns.data.re10k import Re10kSplit
from lsplat_ns.errors import ConfigError, SceneDataError


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Three chunks of test scenes with a right index."""
    chunks = {f"{i:06d}.torch": [stored_scene(f"s{2 * i}"), stored_scene(f"s{2 * i + 1}")] for i in range(3)}
    return write_chunks(tmp_path / "re10k", chunks, "test")


def index_of(root: Path, split: str = "test") -> dict[str, str]:
    return json.loads((root / split / "index.json").read_text())


def test_every_split_with_chunks_gets_an_index_that_training_opens(tmp_path: Path) -> None:
    root = write_chunks(tmp_path / "d", {"a.torch": [stored_scene("x"), stored_scene("y")]}, "train")
    write_chunks(root, {"b.torch": [stored_scene("z")]}, "test")
    for split in ("train", "test"):
        (root / split / "index.json").unlink()
    (root / "notes").mkdir()
    done = []
    assert index_dataset(root, done.append) == []
    assert index_of(root, "train") == {"x": "a.torch", "y": "a.torch"} and index_of(root) == {"z": "b.torch"}
    assert [result.scan.folder.name for result in done] == ["test", "train"]
    assert not (root / "notes" / "index.json").exists()
    assert len(Re10kSplit.open(root, "train").read_scene("y")) == 6


def test_a_right_index_is_left_alone(dataset: Path) -> None:
    path = dataset / "test" / "index.json"
    before = path.stat()
    result = index_split(dataset / "test")
    assert not result.changed and "already right" in describe(result)[0]
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_repair_adds_moves_and_removes_and_keeps_the_order(dataset: Path) -> None:
    wrong = {"s5": "000002.torch", "gone": "000009.torch", "s0": "000002.torch", "s1": "../../elsewhere.torch"}
    (dataset / "test" / "index.json").write_text(json.dumps(wrong))
    result = index_split(dataset / "test")
    assert list(index_of(dataset)) == ["s5", "s0", "s1", "s2", "s3", "s4"]
    assert index_of(dataset) == {f"s{i}": f"{i // 2:06d}.torch" for i in range(6)}
    assert (result.added, result.removed, result.moved) == (["s2", "s3", "s4"], ["gone"], ["s0", "s1"])
    text = "\n".join(describe(result))
    assert "added 3: s2, s3, s4" in text and "removed 1: gone" in text and "moved 2: s0, s1" in text


@pytest.mark.parametrize("damage", ["cut", "text", "code", "empty", "list of numbers", "dictionary"])
def test_scenes_in_broken_chunks_are_left_out_and_named(dataset: Path, damage: str, tmp_path: Path) -> None:
    path = dataset / "test" / "000001.torch"
    if damage == "cut":
        cut_in_half(path)
    elif damage == "code":
        plant_code(path, tmp_path / "executed")
    elif damage == "list of numbers":
        torch.save([1, 2], path)
    elif damage == "dictionary":
        torch.save({"key": "s2"}, path)
    else:
        path.write_text("404: not found" if damage == "text" else "")
    result = index_split(dataset / "test")
    assert set(index_of(dataset)) == {"s0", "s1", "s4", "s5"}
    text = "\n".join(describe(result))
    assert "left out" in text and "000001.torch" in text and "s2, s3" in text
    assert not (tmp_path / "executed").exists()


def test_a_scene_in_two_chunks_is_named_and_indexed_once(dataset: Path) -> None:
    torch.save([stored_scene("s0"), stored_scene("new")], dataset / "test" / "000003.torch")
    result = index_split(dataset / "test")
    assert index_of(dataset)["s0"] == "000000.torch" and index_of(dataset)["new"] == "000003.torch"
    assert "s0 is also in 000003.torch; the index names 000000.torch" in "\n".join(describe(result))


def test_a_link_that_leaves_the_folder_is_left_out(dataset: Path, tmp_path: Path) -> None:
    outside = tmp_path / "secret.torch"
    torch.save([stored_scene("secret")], outside)
    (dataset / "test" / "000007.torch").symlink_to(outside)
    result = index_split(dataset / "test")
    assert "secret" not in index_of(dataset)
    assert "outside" in "\n".join(describe(result))


def test_a_disk_that_fills_while_indexing_leaves_the_old_index_whole(
    dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = (dataset / "test" / "index.json").read_bytes()
    torch.save([stored_scene("new")], dataset / "test" / "000003.torch")
    write_text = Path.write_text

    def fill_the_disk(path: Path, text: str, **options) -> None:
        write_text(path, text[: len(text) // 2], **options)
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_text", fill_the_disk)
    with pytest.raises(SceneDataError) as caught:
        index_split(dataset / "test")
    assert "No space left on device; the old file is unchanged" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (dataset / "test" / "index.json").read_bytes() == old
    assert not list((dataset / "test").glob(".*"))


def test_an_index_stays_when_no_chunk_can_be_read(dataset: Path) -> None:
    old = index_of(dataset)
    for path in (dataset / "test").glob("*.torch"):
        cut_in_half(path)
    (failure,) = index_dataset(dataset, lambda _: None)
    assert "no index for" in failure and "cut short" in failure
    assert index_of(dataset) == old


def test_folders_without_chunks_are_explained_in_one_line(tmp_path: Path) -> None:
    def message(root: Path) -> str:
        with pytest.raises((SceneDataError, ConfigError)) as caught:
            index_dataset(root, lambda _: None)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no data folder" in message(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "holds no dataset" in message(tmp_path / "empty")
    (tmp_path / "capture").mkdir()
    (tmp_path / "capture" / "transforms.json").write_text("{}")
    assert "needs no index.json" in message(tmp_path / "capture")
    (tmp_path / "co3d" / "hydrant").mkdir(parents=True)
    (tmp_path / "co3d" / "hydrant" / "frame_annotations.jgz").write_bytes(b"")
    assert "is CO3D, which needs no index.json" in message(tmp_path / "co3d")
    (tmp_path / "bare" / "test").mkdir(parents=True)
    (tmp_path / "bare" / "test" / "index.json").write_text('{"a": "0.torch"}')
    assert "no .torch chunk" in message(tmp_path / "bare")


@pytest.mark.parametrize("which", [".", "test"])
def test_a_folder_without_read_permission_is_named(dataset: Path, which: str) -> None:
    old = index_of(dataset)
    with without_permission(dataset / which), pytest.raises(SceneDataError, match="Permission denied") as caught:
        index_dataset(dataset, lambda _: None)
    assert str(dataset / which) in str(caught.value) and "\n" not in str(caught.value)
    assert index_of(dataset) == old


def test_indexing_reads_scene_ids_and_not_the_images(tmp_path: Path) -> None:
    heavy = stored_scene("heavy")
    heavy["images"] = [torch.from_numpy(np.random.default_rng(0).integers(0, 255, 60_000_000, dtype=np.uint8))]
    root = write_chunks(tmp_path / "d", {"0.torch": [heavy]}, "test")
    (root / "test" / "index.json").unlink()
    script = (
        "import resource, sys\nfrom pathlib import Path\n"
        "from lsplat_ns.data.indexing import index_split\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "before = peak(); index_split(Path(sys.argv[1])); print(peak() - before)\n"
    )
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script, str(root / "test")], capture_output=True, text=True, check=True
    )
    assert int(result.stdout) < 30_000  # KiB
    assert index_of(root) == {"heavy": "0.torch"}


def run_command(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["lsplat", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code


def test_the_command_says_what_it_did(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    (dataset / "test" / "index.json").unlink()
    cut_in_half(dataset / "test" / "000000.torch")
    assert run_command(monkeypatch, "index", dataset) == 0
    printed = capsys.readouterr().out
    assert "4 scenes in 2 chunks, written" in printed and "left out 000000.torch" in printed
    assert run_command(monkeypatch, "index", dataset, "--seed", 3) == 1
    assert capsys.readouterr().err == "error: these options shape an evaluation index; add --evaluation\n"
    for path in (dataset / "test").glob("*.torch"):
        cut_in_half(path)
    assert run_command(monkeypatch, "index", dataset) == 1
    assert "error: no index for" in capsys.readouterr().err
