"""ImageNet images for the experiments: which file is in which part, and how one is read."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from experiments.classification import ImageClassification, LabelledImages, mixed_order
from experiments.data_folder import data_folder

SIDE = 224
VIEWS = 5
_CALIBRATION_STEP = 4

Labelled = tuple[Path, int]


class ImageNetTask(ImageClassification):
    """Search: the 650 validation images. Calibration: every 4th of the 1,000 of `train_like`; holdout: the other 750.

    There is no other image to train on, so training takes the calibration images (the default of mixq.Task).
    """

    batch_size = 50

    def read(self, part: str) -> LabelledImages:
        """Decodes the images of a part."""
        files = labelled_files(part)
        images = np.stack([read_image(file) for file, _ in files])
        return LabelledImages(images, np.array([label for _, label in files], dtype=np.int64))


def labelled_files(part: str) -> list[Labelled]:
    """The image files of a part, each with its class index (sorted wnid order)."""
    if part == "search":
        return _listed("val")
    train_like = _listed("train_like")
    if part == "training":
        return _mixed(train_like)
    if part == "calibration":
        return _mixed(train_like[::_CALIBRATION_STEP])
    assert part == "holdout", part
    return _mixed([entry for i, entry in enumerate(train_like) if i % _CALIBRATION_STEP])


def _mixed(entries: list[Labelled]) -> list[Labelled]:
    return [entries[i] for i in mixed_order(len(entries))]


def _listed(folder: str) -> list[Labelled]:
    root = data_folder("imagenet")
    lines = (root / f"{folder}_labels.csv").read_text().splitlines()
    pairs = (line.rsplit(",", 1) for line in lines)
    return [(root / folder / name, int(label)) for name, label in pairs]


def read_image(file: Path) -> NDArray[np.uint8]:
    """The centre of an image, SIDE × SIDE × RGB."""
    centre: NDArray[np.uint8] = _read_views(file)[0]
    return centre


def read_views(file: Path) -> NDArray[np.uint8]:
    """VIEWS views of an image: its centre, and its four corners mirrored."""
    views = _read_views(file)
    return np.concatenate([views[:1], views[1:, :, ::-1]])


def varied(image: NDArray[np.uint8], rng: np.random.Generator, smallest: int = 160) -> NDArray[np.uint8]:
    """A part of an image of at least `smallest` pixels, scaled up to SIDE; every other one mirrored."""
    side = int(rng.integers(smallest, SIDE + 1))
    top, left = rng.integers(0, SIDE - side + 1, 2)
    part = Image.fromarray(image[top : top + side, left : left + side])
    found: NDArray[np.uint8] = np.asarray(part.resize((SIDE, SIDE), Image.Resampling.BILINEAR))
    return found[:, ::-1] if rng.random() < 0.5 else found


def _read_views(file: Path) -> NDArray[np.uint8]:
    """Centre and corners."""
    with Image.open(file) as image:
        pixels: NDArray[np.uint8] = np.asarray(image.convert("RGB"))
    down, right = pixels.shape[0] - SIDE, pixels.shape[1] - SIDE
    corners = [(down // 2, right // 2), (0, 0), (0, right), (down, 0), (down, right)]
    return np.stack([pixels[top : top + SIDE, left : left + SIDE] for top, left in corners])
