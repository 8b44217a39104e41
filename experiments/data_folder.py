"""Where the real data of the experiments lies: outside the project, found through MIXQ_DATA."""

import os
from pathlib import Path

from mixq.errors import InputError

_PROJECT_ROOT = Path(__file__).resolve().parents[1]
_DEFAULT = _PROJECT_ROOT.parent / "shared" / "data"


def data_folder(name: str) -> Path:
    """The folder `name` (say "imagenet") of MIXQ_DATA, by default `../shared/data` from the project's root.

    Raises InputError where it is absent.
    """
    folder = Path(os.environ.get("MIXQ_DATA") or _DEFAULT) / name
    if not folder.is_dir():
        raise InputError(
            f"MIXQ_DATA: this experiment needs the data folder {name!r}, and {folder} does not exist; "
            f"set the environment variable MIXQ_DATA to the folder that holds {name}/"
        )
    return folder
