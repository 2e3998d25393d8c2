"""Words of other people's errors, for messages of our own."""


def first_line(error: BaseException) -> str:
    """The first line of what an error says; its class, where it says nothing."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
