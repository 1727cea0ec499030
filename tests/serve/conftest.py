"""Tiny models and servers of them."""

import pytest

from mlx_ft.serve.plan import Plan
from tests.serve.served import Served, make_models


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Folders by name: two models, and adapters of the first one."""
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="session")
def _shared(models, tmp_path_factory):
    found = Served(tmp_path_factory.mktemp("served"), models)
    yield found
    found.close()


@pytest.fixture
def served(_shared, monkeypatch):
    """A server that many tests share; nothing of one is left for the next."""
    monkeypatch.setattr("mlx_ft.serve.around.plan", lambda config, limit: Plan(0, 1))
    yield _shared
    _shared.clean()


@pytest.fixture
def serve(models, tmp_path):
    """Makes servers of one test."""
    made = []

    def one(**settings):
        made.append(Served(tmp_path, models, **settings))
        return made[-1]

    yield one
    for found in made:
        found.close()
