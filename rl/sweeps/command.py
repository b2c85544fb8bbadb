"""A sweep from start to finish: locks its directory, trains its trials, and writes their table."""

from __future__ import annotations

from data.command_line import RunFailedError
from data.run_lock import run_lock
from data.stop_signals import stop_signals
from rl.child_runs.folder import TABLE_FILE, open_folder
from rl.child_runs.work import Crew
from rl.evaluation_tables import make_console
from rl.run_files import POLICY_FOLDER
from rl.sweeps.progress import Sweep
from rl.sweeps.sweep_file import SweepRecipe
from rl.sweeps.table import print_table, ranked
from rl.sweeps.trials import shown_point


def run(recipe: SweepRecipe) -> None:
    """Train the trials that are not finished, and write the table to the directory that holds theirs.

    Raises:
        RecipeError: the sweep cannot be used, or a directory holds another run.
        RunFailedError: some trials failed; the others are finished, and the table written.
        StopRun: a signal; the trials have saved their step.
    """
    sweep, signals = Sweep(recipe), stop_signals()
    open_folder(sweep.folder, "sweep")
    with run_lock(sweep.folder):
        sweep.check_unchanged()
        crew = Crew("sweep", sweep.next_work, sweep.count, recipe.jobs, signals, sweep.failures, sweep.write)
        try:
            with signals.finishing_steps():
                crew.work()
        finally:
            sweep.write()
    best_first = ranked(sweep.results(), recipe)
    if best_first:
        print_table(recipe, best_first, make_console())
        best = best_first[0][0]
        print(f"best: {shown_point(best.point)}, policy in {best.folder / POLICY_FOLDER}")
    print(f"table: {sweep.folder / TABLE_FILE}")
    if sweep.failures:
        raise RunFailedError(
            f"{len(sweep.failures)} of {len(sweep.trials)} trials ({', '.join(sweep.failures)}); "
            f"{sweep.folder / TABLE_FILE} has the reasons, and the same command tries them again"
        )
