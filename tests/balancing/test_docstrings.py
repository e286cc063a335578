"""What the docstrings show is what comes out."""

import doctest
import importlib
import pkgutil

import pytest

import stem_torchrec.balancing as balancing

PARTS = pkgutil.walk_packages(balancing.__path__, f"{balancing.__name__}.")
MODULES = ["stem_torchrec.nn.options", *(part.name for part in PARTS)]


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name):
    failed, _ = doctest.testmod(importlib.import_module(name))
    assert failed == 0


def test_every_public_class_that_can_be_made_shows_how():
    finder = doctest.DocTestFinder(recurse=False)
    for name in set(balancing.__all__) - {"State"}:
        shown = finder.find(getattr(balancing, name), name)
        assert shown[0].examples, name
