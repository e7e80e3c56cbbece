from __future__ import annotations

from pathlib import Path

import pytest

from lsplat_ns.data.published_indices import find_evaluation_indices


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset folder, apart from the folder where commands run."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    return path


def test_there_may_be_none(data: Path) -> None:
    assert find_evaluation_indices(data, ["re10k"]) == []
    assert find_evaluation_indices(data / "absent", ["re10k"]) == []


def test_the_nearest_and_then_the_first_named_file_wins(data: Path) -> None:
    """From the last to the first choice: every new file beats the ones before."""
    for path in (
        Path("assets/evaluation_index/evaluation_index_re10k.json"),  # beside the command, as in the originals
        Path("assets/evaluation_index/re10k_intra.json"),
        Path("assets/evaluation_index/re10k_extra.json"),
        Path("assets/evaluation_index_re10k.json"),
        Path("re10k_intra.json"),
        data / "assets/evaluation_index/re10k_intra.json",
        data / "assets/re10k_intra.json",
        data / "evaluation_index/re10k_extra.json",
        data / "re10k_intra.json",
        data / "re10k_extra.json",
        data / "evaluation_index.json",
    ):
        touch(path)
        assert find_evaluation_indices(data, ["re10k"]) == [path]


def test_every_category_has_an_index_of_its_own(data: Path) -> None:
    hydrant = touch(data / "co3d_hydrant_intra.json")
    teddybear = touch(Path("assets/evaluation_index/co3d_teddybear_extra.json"))
    touch(data / "re10k_extra.json")
    sets = ["co3d_hydrant", "co3d_teddybear", "co3d_bench"]
    assert find_evaluation_indices(data, sets) == [hydrant, teddybear]
