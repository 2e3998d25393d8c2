"""Text of other packages' errors, for our messages."""


def first_line(error: BaseException) -> str:
    """First line of an error's message, or its class if it has none."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
