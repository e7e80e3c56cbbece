from __future__ import annotations

import io
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from re10k_chunks import scene, write

from lsplat_ns.data import re10k
from lsplat_ns.data.re10k import Re10kSplit, read_chunk
from lsplat_ns.errors import SceneDataError


def message_of(root: Path, key: str) -> str:
    """The one line with which a scene of the train split is refused."""
    with pytest.raises(SceneDataError) as caught:
        Re10kSplit.open(root, "train").read_scene(key)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_split_knows_its_scenes_by_chunk(tmp_path: Path) -> None:
    root = write(tmp_path / "d", {"1.torch": [scene("c")], "0.torch": [scene("b"), scene("a")]})
    split = Re10kSplit.open(root, "train")
    assert split.scenes == ["c", "b", "a"] and split.shards == ["0.torch", "1.torch"]
    assert split.scenes_of("0.torch") == ["b", "a"]
    assert [video.scene for video in split.read_shard("0.torch")] == ["b", "a"]


def test_a_chunk_is_opened_once_for_scenes_read_in_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = write(tmp_path / "d", {"0.torch": [scene("a"), scene("b")], "1.torch": [scene("c")]})
    opened = []
    monkeypatch.setattr(re10k, "read_chunk", lambda path: opened.append(path.name) or read_chunk(path))
    split = Re10kSplit.open(root, "train")
    for key in ("a", "b", "c", "a"):
        assert split.read_scene(key).scene == key
    assert opened == ["0.torch", "1.torch"]


def test_a_chunk_that_was_downloaded_again_is_read_again(tmp_path: Path) -> None:
    root = write(tmp_path / "d", {"0.torch": [scene("a", frames=4)]})
    split = Re10kSplit.open(root, "train")
    assert len(split.read_scene("a")) == 4
    torch.save([scene("a", frames=5)], tmp_path / "new.torch")
    os.replace(tmp_path / "new.torch", root / "train" / "0.torch")
    assert len(split.read_scene("a")) == 5


def test_chunks_are_mapped_and_not_loaded(tmp_path: Path) -> None:
    big = scene("a")
    big["images"].append(torch.zeros(200_000_000, dtype=torch.uint8))
    big["cameras"] = torch.cat([big["cameras"], big["cameras"][-1:]])
    root = write(tmp_path / "d", {"0.torch": [big]})
    del big

    def resident_mb() -> float:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

    if not Path("/proc/self/statm").exists():
        pytest.skip("needs /proc")
    before = resident_mb()
    video = Re10kSplit.open(root, "train").read_scene("a")
    video.read_image(0)
    assert resident_mb() - before < 50


def test_chunks_of_old_torch_are_read(tmp_path: Path) -> None:
    root = write(tmp_path / "d", {"0.torch": [scene("a")]})
    torch.save([scene("a")], root / "train" / "0.torch", _use_new_zipfile_serialization=False)
    assert Re10kSplit.open(root, "train").read_scene("a").read_image(0).shape == (36, 64, 3)


def test_a_picture_is_the_image(tmp_path: Path) -> None:
    video = Re10kSplit.open(write(tmp_path / "d", {"0.torch": [scene("a")]}), "train").read_scene("a")
    np.testing.assert_array_equal(np.asarray(video.read_picture(2)), video.read_image(2))
    assert video.read_size(2) == video.read_image(2).shape[:2] == (36, 64)


def test_a_header_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    video = Re10kSplit.open(write(tmp_path / "d", {"0.torch": [scene("a")]}), "train").read_scene("a")
    opened, original = [], Image.open
    monkeypatch.setattr(Image, "open", lambda *given, **options: opened.append(1) or original(*given, **options))
    assert [video.read_size(2) for _ in range(3)] == [(36, 64)] * 3 and len(opened) == 1


# ---------------------------------------------------------------------------------------------------- bad input


def test_a_chunk_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    root = write(tmp_path / "d", {"0.torch": [scene("a")]})
    marker = tmp_path / "executed"

    class Attack:
        def __reduce__(self):
            return (open, (str(marker), "w"))

    path = root / "train" / "0.torch"
    path.write_bytes(pickle.dumps(Attack()))
    assert "0.torch" in message_of(root, "a")
    torch.save([scene("a"), Attack()], path)
    assert "0.torch" in message_of(root, "a") and "carries pickled code" in message_of(root, "a")
    assert not marker.exists()


def test_a_chunk_cut_in_half_is_named(tmp_path: Path) -> None:
    root = write(tmp_path / "d", {"0.torch": [scene("a")]})
    path = root / "train" / "0.torch"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    message = message_of(root, "a")
    assert "0.torch" in message and "cut short" in message and "download it again" in message


@pytest.mark.parametrize("content", [b"", b"\x89PNG not torch", b"PK\x03\x04 no archive either"])
def test_a_file_that_is_not_torchs_is_named(tmp_path: Path, content: bytes) -> None:
    root = write(tmp_path / "d", {"0.torch": [scene("a")]})
    (root / "train" / "0.torch").write_bytes(content)
    assert "0.torch" in message_of(root, "a")


def test_a_file_of_another_shape_is_named(tmp_path: Path) -> None:
    root = write(tmp_path / "d", {"0.torch": [scene("a")]})
    torch.save({"a": scene("a")}, root / "train" / "0.torch")
    assert "holds a dict, not a list of scenes" in message_of(root, "a")


def test_a_scene_that_the_index_misplaces_is_named(tmp_path: Path) -> None:
    root = write(tmp_path / "d", {"0.torch": [scene("a")], "1.torch": [scene("b")]})
    (root / "train" / "index.json").write_text('{"a": "1.torch"}')
    assert "puts scene a in 1.torch, but it is not there" in message_of(root, "a")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda s: s.update(cameras=s["cameras"][:, :17]), "one row of 18 camera numbers"),
        (lambda s: s.update(cameras=s["cameras"][:4]), "one row of 18 camera numbers"),
        (lambda s: s.update(cameras="none"), "one row of 18 camera numbers"),
        (lambda s: s.update(cameras=s["cameras"].to_sparse()), "one row of 18 camera numbers"),
        (lambda s: s.update(cameras=s["cameras"].to("meta")), "one row of 18 camera numbers"),
        (lambda s: s.update(cameras=s["cameras"].long()), "one row of 18 camera numbers"),
        (lambda s: s.update(images=torch.zeros(1).expand(10**12)), "are a Tensor, not a list"),
        (lambda s: s.pop("images"), "lacks key, cameras or images"),
        (lambda s: s["cameras"].__setitem__((2, 7), float("nan")), "frame 2, has a camera with NaN"),
        (lambda s: s["cameras"].__setitem__((3, 0), float("inf")), "frame 3, has a camera with NaN or infinite"),
        (lambda s: s["cameras"][:, 6:].mul_(2), "frame 0, has a pose that is not rigid"),
        (lambda s: s["cameras"][1, 6:10].mul_(-1), "frame 1, has a pose that is not rigid"),
        (lambda s: s["cameras"][1, 6:].zero_(), "pose that cannot be inverted"),
        (lambda s: s["cameras"][:, :4].mul_(torch.tensor([64, 36, 64, 36])), "intrinsics in pixels; divide fx, cx by"),
        (lambda s: s["cameras"][4, 1].mul_(-1), "frame 4, has a focal length that is not positive"),
        (lambda s: s.update(cameras=s["cameras"][:0], images=[]), "has no frame"),
    ],
)
def test_a_broken_scene_is_explained_and_the_others_are_read(tmp_path: Path, damage, expected: str) -> None:
    broken = scene("broken")
    damage(broken)
    root = write(tmp_path / "d", {"0.torch": [broken, scene("good")]})
    split, told = Re10kSplit.open(root, "train"), []
    assert expected in message_of(root, "broken")
    assert split.read_scene("good").scene == "good"
    assert [video.scene for video in split.read_shard("0.torch", told.append)] == ["good"]
    assert expected in str(told[0]) and len(told) == 1
    with pytest.raises(SceneDataError):
        list(split.read_shard("0.torch"))


@pytest.mark.parametrize(
    "file",
    [
        torch.zeros(0, dtype=torch.uint8),
        torch.arange(99, dtype=torch.uint8),
        torch.tensor(list(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), dtype=torch.uint8),
        torch.zeros(1, dtype=torch.uint8).expand(10**13),  # a few bytes in the chunk
        "no tensor",
    ],
)
def test_a_file_that_is_no_image_is_named(tmp_path: Path, file: object) -> None:
    broken = scene("broken")
    broken["images"][3] = file
    root = write(tmp_path / "d", {"0.torch": [broken]})
    video = Re10kSplit.open(root, "train").read_scene("broken")
    for read in (video.read_image, video.read_picture, video.read_size):
        with pytest.raises(SceneDataError, match=r"frame 3 of scene broken in 0\.torch is not a readable image"):
            read(3)
    assert video.read_image(2).shape == (36, 64, 3)


def test_tensors_may_be_stored_in_unusual_ways(tmp_path: Path) -> None:
    usual, unusual = scene("a"), scene("a")
    unusual["images"] = tuple(torch.stack([image, image], 1)[:, 1] for image in usual["images"])  # every second byte
    unusual["cameras"] = torch.nn.Parameter(usual["cameras"].double())
    videos = [
        Re10kSplit.open(write(tmp_path / name, {"0.torch": [stored]}), "train").read_scene("a")
        for name, stored in (("usual", usual), ("unusual", unusual))
    ]
    np.testing.assert_array_equal(videos[1].read_image(3), videos[0].read_image(3))
    torch.testing.assert_close(videos[1].world_from_camera, videos[0].world_from_camera, check_dtype=False)
    assert not videos[1].world_from_camera.requires_grad


def test_a_frame_cut_in_half_is_named(tmp_path: Path) -> None:
    cut = scene("cut")
    cut["images"][3] = cut["images"][3][: len(cut["images"][3]) // 2]
    root = write(tmp_path / "d", {"0.torch": [cut]})
    video = Re10kSplit.open(root, "train").read_scene("cut")
    with pytest.raises(SceneDataError, match=r"frame 3 of scene cut in 0\.torch is cut short"):
        video.read_image(3)


def test_gray_images_become_rgb(tmp_path: Path) -> None:
    gray = scene("gray")
    buffer = io.BytesIO()
    Image.new("L", (64, 36), 77).save(buffer, "JPEG")
    gray["images"][0] = torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)
    root = write(tmp_path / "d", {"0.torch": [gray]})
    assert (Re10kSplit.open(root, "train").read_scene("gray").read_image(0) == 77).all()


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs POSIX permissions")
@pytest.mark.parametrize("forbidden", [".", "train", "train/index.json", "train/0.torch"])
def test_data_without_read_permission_are_named(tmp_path: Path, forbidden: str) -> None:
    root = write(tmp_path / "d", {"0.torch": [scene("a")]})
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    target, user = root / forbidden, os.geteuid()
    target.chmod(0)
    if user == 0:
        os.seteuid(65534)  # nobody; root may read everything
    try:
        message = message_of(root, "a")
    finally:
        if user == 0:
            os.seteuid(0)
        target.chmod(0o755)
    assert "cannot read" in message and "Permission denied" in message and str(root) in message


def test_broken_folders_are_explained(tmp_path: Path) -> None:
    def message(root: Path) -> str:
        with pytest.raises(SceneDataError) as caught:
            Re10kSplit.open(root, "train")
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no data folder" in message(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "index.json is missing" in message(tmp_path / "empty")
    root = write(tmp_path / "d", {"0.torch": [scene("a")]})
    (root / "train" / "0.torch").unlink()
    assert "names chunk 0.torch, which is not in" in message(root)
    (root / "train" / "index.json").write_text('{"a": "../../secret.torch"}')
    assert "outside" in message(root)
    for chunk in ("/etc/passwd", "x\0.torch", "."):
        (root / "train" / "index.json").write_text(json.dumps({"a": chunk}))
        assert "outside" in message(root) and "write it anew" in message(root)
    (root / "train" / "1.torch").symlink_to(write(tmp_path / "e", {"1.torch": [scene("b")]}) / "train" / "1.torch")
    (root / "train" / "index.json").write_text('{"b": "1.torch"}')
    assert "outside" in message(root) and "link the whole folder, or copy the file" in message(root)
    for content in ("not json", "[1, 2]", "\udcff"):
        (root / "train" / "index.json").write_bytes(content.encode(errors="surrogateescape"))
        assert "not a JSON object" in message(root)
    (root / "train" / "index.json").write_text("{}")
    assert "lists no scene" in message(root)


def test_an_unknown_scene_is_answered_with_known_ones(tmp_path: Path) -> None:
    root = write(tmp_path / "d", {"0.torch": [scene("room-1"), scene("room-2")]})
    with pytest.raises(SceneDataError, match=r"no scene room-9 in .*room-1"):
        Re10kSplit.open(root, "train").read_scene("room-9")
