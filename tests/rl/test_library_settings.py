"""What the run silences of other libraries: exactly TRL's dump of a row without rewards."""

import logging

import pytest

from rl.library_settings import quiet_libraries
from tests.rl.training_runs import FakeService, Run

# Deprecations of transformers, which TRL has to fix.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


def test_the_row_that_trl_dumps_for_an_unscored_rig_is_silenced(make_recipe, caplog, capsys):
    trainer = Run(make_recipe(), FakeService(lambda row: None if row == 0 else 0.5)).trainer()
    trainer.model.train()
    prompts = [{"prompt": trainer.bank.prompt(k)} for k in (0, 0, 0, 0, 1, 1, 1, 1)]
    library = logging.getLogger("trl.trainer.grpo_trainer")
    filters, library.filters = library.filters, []
    try:
        trainer._generate_and_score_completions(prompts)
        dumped = [record.getMessage() for record in caplog.records if record.name == library.name]
        assert len(dumped) == 1  # TRL still writes it: without it the filter would be dead
        assert "scored_rollout" in dumped[0]
        caplog.clear()
        capsys.readouterr()
        quiet_libraries()
        trainer._generate_and_score_completions(prompts)
        library.warning("another warning")
    finally:
        library.filters = filters
    assert [record.getMessage() for record in caplog.records] == ["another warning"]
    assert "have no score and are excluded" in capsys.readouterr().err
