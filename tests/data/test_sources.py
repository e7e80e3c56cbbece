from __future__ import annotations

from pathlib import Path

import pytest
from re10k_chunks import scene, write

from lsplat_ns.data.re10k import Re10kSplit
from lsplat_ns.data.sources import JoinedSources, VideoList
from lsplat_ns.errors import SceneDataError


def splits(root: Path, **folders: list[str]) -> dict[str, Re10kSplit]:
    for name, keys in folders.items():
        write(root / name, {"0.torch": [scene(key) for key in keys]})
    return {str(root / name): Re10kSplit.open(root / name, "train") for name in folders}


def test_joined_sources_hold_the_scenes_of_all(tmp_path: Path) -> None:
    joined = JoinedSources(splits(tmp_path, first=["a", "b"], second=["c"]))
    assert joined.scenes == ["a", "b", "c"]
    assert joined.shards == [f"{tmp_path}/first/0.torch", f"{tmp_path}/second/0.torch"]
    assert [joined.scenes_of(shard) for shard in joined.shards] == [["a", "b"], ["c"]]
    assert [video.scene for video in joined.read_shard(joined.shards[1])] == ["c"]
    assert [joined.read_scene(key).scene for key in ("c", "a")] == ["c", "a"]
    with pytest.raises(SceneDataError, match=f"no scene z in .*{tmp_path}/second"):
        joined.read_scene("z")


def test_a_scene_in_two_folders_is_refused(tmp_path: Path) -> None:
    sources = splits(tmp_path, first=["a", "b"], second=["b"])
    with pytest.raises(SceneDataError, match=f"scene b is in {tmp_path}/first and in {tmp_path}/second"):
        JoinedSources(sources)


def test_videos_in_memory_are_shards_of_their_own(tmp_path: Path) -> None:
    (split,) = splits(tmp_path, first=["b", "a"]).values()
    videos = VideoList(tuple(split.read_shard("0.torch")))
    assert videos.scenes == ["b", "a"] and videos.shards == ["a", "b"]
    assert videos.scenes_of("a") == ["a"]
    assert [video.scene for video in videos.read_shard("a")] == ["a"]
    with pytest.raises(SceneDataError, match="no scene z; there are b, a"):
        videos.read_scene("z")
