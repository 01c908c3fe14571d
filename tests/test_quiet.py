import pytest
from transformers.utils import logging

from ckptlin.quiet import quiet_transformers


@pytest.mark.parametrize("had_bars", [True, False])
def test_transformers_is_silent_inside_and_as_before_afterwards(had_bars):
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        (logging.enable_progress_bar if had_bars else logging.disable_progress_bar)()
        logging.set_verbosity_info()
        with quiet_transformers():
            assert logging.get_verbosity() == logging.ERROR
            assert not logging.is_progress_bar_enabled()
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled() == had_bars
    finally:
        logging.set_verbosity(verbosity)
        (logging.enable_progress_bar if bars else logging.disable_progress_bar)()
