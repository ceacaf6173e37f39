"""The page of what the losses compose with is written from the tests' own tables, and is current."""

import pytest

import composition

pytestmark = pytest.mark.cpu_only


def test_the_page_is_what_the_tables_say():
    assert composition.PAGE.read_text() == composition.page(), "write it anew: python tests/composition.py"
