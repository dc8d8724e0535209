"""Reads the commands of a document: the lines of its fenced shell blocks."""

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# The languages of blocks with commands, and of other blocks. Any other language is an error.
SHELL = {"sh", "console"}
OTHER = {"ini", "json", "json5", "text", "toml", "yaml"}


def blocks(document: str) -> list[tuple[str, str]]:
    """The language and the text of every fenced block."""
    found = re.findall(r"^( *)```([^\n`]*)\n(.*?)^\1```$", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)
    for _, language, text in found:
        assert language in SHELL | OTHER, f"{document}: a block of the language {language!r}:\n{text}"
    return [(language, textwrap.dedent(text)) for _, language, text in found]


def commands(document: str) -> list[str]:
    """Every command of the document, in order. Continued lines are joined."""
    lines = "\n".join(text for language, text in blocks(document) if language in SHELL).replace("\\\n", "")
    return [line.strip() for line in lines.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def block(document: str, language: str, part: str) -> str:
    """The only block of the language that contains `part`."""
    found = [text for other, text in blocks(document) if other == language and part in text]
    assert len(found) == 1, f"{document}: {len(found)} blocks of {language} with {part!r}"
    return found[0]
