"""The commands of a document: what its fenced blocks for a shell hold, one string each."""

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# What a reader may type, and what is something else. A fence of any other sort is a mistake.
SHELL = {"sh", "console"}
OTHER = {"ini", "json", "json5", "text", "toml", "yaml"}


def blocks(document: str) -> list[tuple[str, str]]:
    """Every fenced block with its language."""
    found = re.findall(r"^( *)```([^\n`]*)\n(.*?)^\1```$", (ROOT / document).read_text(), re.MULTILINE | re.DOTALL)
    for _, language, text in found:
        assert language in SHELL | OTHER, f"{document}: a block of the language {language!r}:\n{text}"
    return [(language, textwrap.dedent(text)) for _, language, text in found]


def commands(document: str) -> list[str]:
    """Every command, in order; one that goes on over several lines is one."""
    lines = "\n".join(text for language, text in blocks(document) if language in SHELL).replace("\\\n", "")
    return [line.strip() for line in lines.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def block(document: str, language: str, part: str) -> str:
    """The one block of that language that has `part` in it, for a place that is made of it."""
    found = [text for other, text in blocks(document) if other == language and part in text]
    assert len(found) == 1, f"{document}: {len(found)} blocks of {language} with {part!r}"
    return found[0]
