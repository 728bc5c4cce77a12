"""`python -m ranksort`, for when the command is not on the path."""

from .cli import main

main()
