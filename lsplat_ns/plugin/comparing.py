"""``lsplat compare``: two runs on the same entries."""

from __future__ import annotations

import shlex
from pathlib import Path

from lsplat_ns.errors import ConfigError
from lsplat_ns.evaluation.comparison import Comparison, table_rows, write_comparison, write_numbers
from lsplat_ns.evaluation.results import SETTINGS, SUMMARY, read_json
from lsplat_ns.plugin.evaluating import EvaluationOptions, check_run, evaluate_run
from lsplat_ns.wording import counted


def compare_runs(a: Path, b: Path, output: Path, options: EvaluationOptions) -> Comparison:
    """Put two runs side by side: evaluate each where that has not been done, and write a page.

    Args:
        a: Run folder, its config.yml, or the folder of an evaluation.
        b: The same of the other one.
        output: Folder to make; evaluations of runs go into ``a`` and ``b`` below it.
        options: For runs that are to be evaluated.

    Raises:
        LsplatError: As :func:`evaluate_run`; ConfigError if the two share no entry, one is an evaluation without a
            summary, or ``output`` is an evaluation.
    """
    from rich.console import Console
    from rich.table import Table

    if (output / SETTINGS).is_file():
        raise ConfigError(f"{output} holds an evaluation; choose another folder with --output")
    for run in (a, b):  # what is wrong with B shows before A is evaluated, which may take hours
        if not (run / SUMMARY).is_file():
            _refuse_unfinished(run)
            check_run(run, options)
    folders = tuple(_evaluated(run, output / name, options) for run, name in ((a, "a"), (b, "b")))
    comparison = Comparison.of(*folders)
    names = _names(a, b)
    page = output / "index.html"
    write_comparison(comparison, page, names, options.illustrated)
    write_numbers(comparison, output / "comparison.json")
    table = Table(title=f"A: {names[0]}    B: {names[1]}    {counted(len(comparison.pairs), 'entry', 'entries')}")
    for column in ("", "A", "B", "B − A", "95 % interval", "B better in"):
        table.add_column(column, justify="right" if column else "left")
    for row in table_rows(comparison):
        table.add_row(*(row[key] for key in ("label", "a", "b", "difference", "interval", "wins")))
    Console().print(table)
    for warning in comparison.warnings:
        print(f"Note: {warning}")
    print(f"Report: {page}")
    return comparison


def _refuse_unfinished(folder: Path) -> None:
    """Raise ConfigError where an evaluation was killed before it could sum up."""
    if not (folder / SETTINGS).is_file():
        return
    run = read_json(folder / SETTINGS).get("run", "RUN")
    command = shlex.join(["lsplat", "evaluate", str(run), "--output", str(folder)])
    raise ConfigError(
        f"{folder} holds an evaluation that is not finished; go on with `{command}` and the options that it began with"
    )


def _evaluated(run: Path, output: Path, options: EvaluationOptions) -> Path:
    if (run / SUMMARY).is_file():
        return run
    evaluate_run(run, output, options)
    return output


def _names(a: Path, b: Path) -> tuple[str, str]:
    """Short names that differ."""
    names = [path.resolve().parent if path.suffix == ".yml" else path.resolve() for path in (a, b)]
    if names[0].name != names[1].name:
        return names[0].name, names[1].name
    return str(a), str(b)
