"""Options of Fashion-MNIST."""

from dataclasses import dataclass

from syncbn.data.shared_options import OfClasses
from syncbn.norm.core.options import Count, Share, option, redeclared


@dataclass
class FashionMNISTOptions(OfClasses):
    """Fashion-MNIST, 70,000 images of clothes of 28×28 pixels."""

    eval_batch_size: Count = redeclared(OfClasses, "eval_batch_size", 500)
    folder: str | None = option(None, "folder of the four files; null: Debian's package, else the hub")
    val_fraction: Share = option(0.1, "part of the 60,000 images outside the test set held out for validation")
    small: Count | None = option(
        None,
        "number of training images; null: all that aren't held out",
        refusal="small must be at least 1, got {value}",
    )
    corruptions: dict[str, float] = option(
        {}, "a shifted domain: severities (fog: 3) or amounts (noise: 0.5) of syncbn.data.corruptions"
    )


OPTIONS = {"FashionMNISTDataModule": FashionMNISTOptions}
