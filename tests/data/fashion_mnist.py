"""For tests of the real images: those that Debian's package puts on the disk."""

import pytest

from syncbn.data.fashion_mnist import PACKAGE

needs_fashion_mnist = pytest.mark.skipif(
    not PACKAGE.is_dir(), reason="needs Fashion-MNIST: apt-get install dataset-fashion-mnist"
)
