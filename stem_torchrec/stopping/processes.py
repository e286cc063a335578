"""Names for processes of this machine that stay true when a number is used again."""

from pathlib import Path


def process_name(number: int) -> str:
    """Number and start of a process, in ticks since the machine's."""
    fields = _stat(number)
    return str(number) if fields is None else f"{number} {fields[19]}"


def is_there(name: str) -> bool:
    """Whether the process with such a name runs; one that nobody has waited for does not."""
    number = name.partition(" ")[0]
    fields = _stat(int(number)) if number.isdigit() else None
    return fields is not None and fields[0] not in "ZX" and name == f"{number} {fields[19]}"


def _stat(number: int) -> list[str] | None:
    """State, parent and so on: all but number and name, which may hold spaces."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
