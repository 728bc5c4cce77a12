"""Words of what is printed."""


def counted(number: int, noun: str) -> str:
    """ "1 image", "2 images", "2 classes"."""
    ending = "" if number == 1 else "es" if noun.endswith("s") else "s"
    return f"{number} {noun}{ending}"
