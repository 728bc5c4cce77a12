import pytest
from ranking_cases import WAYS, count_in


@pytest.fixture(params=WAYS)
def sums(request, monkeypatch):
    count_in(request.param, monkeypatch)
