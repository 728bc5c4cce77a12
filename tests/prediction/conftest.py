import pytest
from colour_detector import Colours


@pytest.fixture
def colours() -> Colours:
    return Colours()
