"""The real images of Debian's package, for tests."""

import pytest

from syncbn.data.fashion_mnist import PACKAGE

needs_fashion_mnist = pytest.mark.skipif(
    not PACKAGE.is_dir(), reason="needs Fashion-MNIST: apt-get install dataset-fashion-mnist"
)
