"""The ``lsplat`` command, and that the README tells the truth about it."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import pytest
from conftest import call

README = (Path(__file__).resolve().parents[1] / "README.md").read_text()


def commands_in_readme() -> list[list[str]]:
    """Every command line of the README's shell blocks, continuation lines joined."""
    commands = []
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            code = line.split("  #")[0].strip()
            if code and not code.startswith("#"):
                commands += [shlex.split(part) for part in code.split("&&")]
    return commands


def options_by_subcommand(words: list[str]) -> dict[tuple[str, ...], list[str]]:
    """A command line's options by the (sub)command that takes them; a dataparser takes those behind its name."""
    subcommand = tuple(words[:2]) if len(words) > 1 and not words[1].startswith("-") else (words[0],)
    options: dict[tuple[str, ...], list[str]] = {subcommand: []}
    for word in words:
        if word in ("re10k-data", "co3d-data", "nerfstudio-data", "colmap"):
            subcommand = (*subcommand, word)
            options[subcommand] = []
        elif word.startswith("--"):
            options[subcommand].append(word)
    return options


def test_readme_gives_both_one_line_set_ups() -> None:
    assert "pip install . && lsplat demo" in README
    assert "pip install '.[test]' && pytest" in README


@pytest.fixture
def help_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """What an installed command says for ``--help``, in this process: a new one takes seconds for its imports."""
    monkeypatch.setenv("COLUMNS", "200")

    def said(name: str, *subcommands: str) -> str:
        (script,) = entry_points(group="console_scripts", name=name)
        monkeypatch.setattr(sys, "argv", [name, *subcommands, "--help"])
        with pytest.raises(SystemExit) as ended:
            script.load()()
        output = capsys.readouterr().out
        assert ended.value.code in (None, 0), f"{' '.join(sys.argv)}: {output[-500:]}"
        return output

    return said


@pytest.mark.slow
def test_every_command_of_the_readme_exists_with_its_options(help_of: Callable[..., str]) -> None:
    helps: dict[tuple[str, ...], str] = {}
    seen = 0
    for words in commands_in_readme():
        if words[0] not in ("lsplat", "ns-train", "ns-viewer", "ns-render", "ns-eval", "ns-export"):
            assert words[0] in ("pip", "pytest", "git", "cd", "apt", "python", "sudo", "export"), words
            continue
        for subcommand, options in options_by_subcommand(words).items():
            if options and subcommand not in helps:
                helps[subcommand] = help_of(*subcommand)
            for option in options:
                assert option in helps[subcommand] or option == "--help", f"{' '.join(words)}: no {option}"
        seen += 1
    assert seen >= 8


def test_readme_lists_every_method_and_dataparser() -> None:
    for group in ("nerfstudio.method_configs", "nerfstudio.dataparser_configs"):
        for entry in entry_points(group=group):
            if entry.value.startswith("method_configs"):
                assert f"`{entry.name}`" in README, entry.name


def test_doctor_says_that_the_demo_can_run(tmp_path: Path) -> None:
    outcome = call("lsplat", "doctor", cwd=tmp_path)
    assert outcome.code == 0, outcome.output
    for word in ("torch", "nerfstudio", "gsplat kernels", "ffmpeg", "libusb", "demo weights", "LPIPS weights", "Ready"):
        assert word in outcome.output, word


def test_doctor_exits_1_when_something_needed_is_missing() -> None:
    from lsplat_ns.plugin.doctor import Finding, report

    assert report([Finding("torch", "missing", "not installed; pip install torch")]) == 1
    assert report([Finding("libusb", "note", "absent")]) == 0


def test_doctor_misses_the_weights_that_the_demo_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lsplat_ns.checkpoints import demo_weights
    from lsplat_ns.plugin.doctor import _demo_weights

    assert [finding.state for finding in _demo_weights()] == ["ok"]
    monkeypatch.setattr(demo_weights, "FOLDER", tmp_path)
    assert [finding.state for finding in _demo_weights()] == ["missing"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--size", "big"], "HEIGHTxWIDTH"),
        (["--scenes", "0"], "scenes"),
        (["--frames", "1"], "frames"),
        (["--size", "4x4"], "16"),
    ],
)
def test_impossible_scenes_are_refused_in_one_line(tmp_path: Path, options: list[str], words: str) -> None:
    outcome = call("lsplat", "make-scenes", tmp_path / "out", *options, cwd=tmp_path)
    assert outcome.code == 1 and "Traceback" not in outcome.output, outcome.output
    (line,) = [line for line in outcome.output.splitlines() if line.startswith("error: ")]
    assert words in line
    assert not (tmp_path / "out").exists()


def test_scenes_are_not_written_over_other_files(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("precious")
    outcome = call("lsplat", "make-scenes", folder, "--scenes", 1, "--frames", 3, "--size", "32x32", cwd=tmp_path)
    assert outcome.code == 1 and "error: " in outcome.output
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (folder / "thesis.txt").read_text() == "precious"


def test_unknown_options_are_refused_with_a_suggestion(tmp_path: Path) -> None:
    outcome = call("lsplat", "make-scenes", "x", "--frame", 3, cwd=tmp_path)
    assert outcome.code == 2
    assert "--frames" in outcome.output
