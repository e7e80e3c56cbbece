"""Words of messages that depend on a number."""


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number and its noun: "1 frame", "2 frames"; ``many`` is the plural where it is not ``one`` and an s."""
    return f"{number} {one if number == 1 else many or one + 's'}"
