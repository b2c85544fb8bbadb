"""An ablation from start to finish: checks, runs, tables, plots and the page of all runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from data.command_line import RunFailedError
from data.run_lock import run_lock
from data.stop_signals import stop_signals
from rl.ablation import state
from rl.ablation.matrix import BASE, PAGE_FILE, PLOTS_FOLDER, AblationRecipe, Run, expand
from rl.ablation.plots import write_plots
from rl.ablation.table import variant_result
from rl.ablation.table_files import AblationResults, print_tables, write_tables
from rl.ablation.work import run_matrix, write_page
from rl.child_runs.folder import LOG_FILE, TABLE_FILE, open_folder
from rl.evaluation_tables import make_console


def run(ablation: AblationRecipe) -> None:
    """Train and evaluate what is not finished, and write tables, plots and a page to `output_dir`.

    Raises:
        RecipeError: the recipe cannot be used, or `output_dir` holds runs of another one.
        RunFailedError: some runs failed; the others are finished, and the tables written.
        StopRun: a signal; the runs have saved their step.
    """
    output = Path(ablation.output_dir)
    runs = expand(ablation)
    open_folder(output, "ablation")
    with run_lock(output):
        state.check_unchanged(runs)
        failures: dict[str, str] = {}
        try:
            run_matrix(ablation, runs, stop_signals(), failures, lambda: _write(ablation, runs, failures))
        finally:
            results = _write(ablation, runs, failures)
        assert results is not None  # the policy before training is evaluated
        print_tables(results, make_console())
        print(f"tables: {output / TABLE_FILE}")
        _draw(ablation, results, _finished(runs), output)
    if failures:
        names = ", ".join(failures)
        raise RunFailedError(
            f"{len(failures)} of {sum(run.wanted for run in runs)} runs ({names}); {output / TABLE_FILE} has "
            "the reasons, and the same command tries them again"
        )


def _draw(
    ablation: AblationRecipe, results: AblationResults, done: Mapping[str, Sequence[Run]], output: Path
) -> None:
    """Write the plots and the page of the finished runs, if there are any."""
    if not done:
        return
    folders = {name: [run.folder for run in own] for name, own in done.items()}
    write_plots(results, folders, output)
    print(f"plots: {output / PLOTS_FOLDER}")
    if ablation.report == "none":
        return
    shown = [folder for own in folders.values() for folder in (own if ablation.report == "all" else own[:1])]
    write_page(shown, output / PAGE_FILE, output / LOG_FILE, stop_signals())
    print(f"page: {output / PAGE_FILE}")


def _write(
    ablation: AblationRecipe, runs: Sequence[Run], failures: Mapping[str, str]
) -> AblationResults | None:
    """Write the tables of what is finished so far; None if nothing is."""
    results = results_of(ablation, runs, failures)
    if results is not None:
        write_tables(results, Path(ablation.output_dir))
    return results


def results_of(
    ablation: AblationRecipe, runs: Sequence[Run], failures: Mapping[str, str]
) -> AblationResults | None:
    """What the finished runs show; None while there is none."""
    start = next(run.before for run in runs if run.variant == BASE)
    if not state.is_evaluated(start):
        return None
    done = _finished(runs)
    base = {run.seed: state.evaluation_of(run.after) for run in done.get(BASE, [])}
    variants = [
        variant_result(
            name,
            ablation.variants.get(name, []),
            {run.seed: state.evaluation_of(run.before) for run in own},
            {run.seed: state.evaluation_of(run.after) for run in own},
            {} if name == BASE else base,
        )
        for name, own in done.items()
    ]
    missing = {
        run.name: failures.get(run.name, "not finished")
        for run in runs
        if run.wanted and run not in done.get(run.variant, [])
    }
    return AblationResults(state.evaluation_of(start), variants, missing)


def _finished(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """The runs of each variant that are trained and evaluated, variants in the recipe's order."""
    found: dict[str, list[Run]] = {}
    for run in runs:
        if state.next_step(run) is None and state.is_evaluated(run.before):
            found.setdefault(run.variant, []).append(run)
    names = dict.fromkeys(run.variant for run in runs)
    return {name: found[name] for name in names if name in found}
