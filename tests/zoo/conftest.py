from __future__ import annotations

import pytest

from edgekit.errors import DataError
from samples.data import FashionMnist, fashion_mnist


@pytest.fixture(scope="session")
def fashion_data() -> FashionMnist:
    try:
        return fashion_mnist()
    except DataError as error:
        pytest.skip(f"Fashion-MNIST cannot be had here: {error.message}")
