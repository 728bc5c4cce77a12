"""What the arguments of several commands are."""

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

RecipeName = Annotated[str, Positional, arg(metavar="RECIPE")]
CheckpointPath = Annotated[Path, Positional, arg(metavar="CHECKPOINT")]
JsonPath = Annotated[Path, Positional, arg(metavar="JSON")]
TIME = "%Y-%m-%d_%H-%M-%S"  # names of folders
