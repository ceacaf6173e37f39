"""A plugin of pytest's for tools/mutate.py: puts tests in order, says which one is running, and ends one that does not.

Its settings are environment variables: JAXLOSS_ONLY_TESTS, names of tests, a line each, which alone are run, or nothing
for all; and JAXLOSS_RUNNING_TEST, a file for the name of the running test, which gets an end of line when the test has
ended.
"""

import faulthandler
import os
import pathlib

import pytest

SECONDS = 180
"""Of one test, after which it is taken to be endless, and the process ends."""

ONLY = os.environ["JAXLOSS_ONLY_TESTS"].splitlines()
RUNNING = pathlib.Path(os.environ["JAXLOSS_RUNNING_TEST"])


@pytest.hookimpl(trylast=True)  # after `-m` has picked, and after fixtures of modules have put theirs together
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Some cells of each test go before all the others, for a fault that one cell does not see another test does."""
    items[:] = [item for item in items if not ONLY or item.nodeid in ONLY]
    items.sort(key=lambda item: item.get_closest_marker("each") is None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    RUNNING.write_text(item.nodeid)
    faulthandler.dump_traceback_later(SECONDS, exit=True, file=2)
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()
        RUNNING.write_text(f"{item.nodeid}\n")
