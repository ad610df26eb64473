"""Files that list images: one a line, with # for comments."""


def names(text: str) -> list[str]:
    """The images of a file, as people call them."""
    found = (line.partition("#")[0].strip() for line in text.splitlines())
    return [line for line in found if line]
