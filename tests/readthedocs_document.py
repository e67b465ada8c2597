"""Puts the blocks of docs/readthedocs.md where their first lines say that they belong, as whoever follows it does."""

from __future__ import annotations

import ast
import re
import textwrap
from dataclasses import dataclass
from pathlib import Path

from tests.test_docs import EXAMPLES, ROOT

DOCUMENT = ROOT / "docs" / "readthedocs.md"

_HEAD = re.compile(r"# (?P<file>[^,:]+)(?:, (?P<place>[^:]+))?: (?P<how>.+)")
_PRODUCTION = ("readthedocs/settings/production.py", "CommunityProductionSettings")


@dataclass(frozen=True)
class Block:
    line: int
    file: str
    place: str
    """The class, and what is in it, with a dot between."""
    how: str
    code: str

    def apply(self, site: Path) -> None:
        path = site / self.file
        if self.how == "the whole file":
            path.write_text(self.code)
            return
        text = path.read_text()
        if self.how == "one import more":
            last = [node for node in ast.parse(text).body if isinstance(node, (ast.Import, ast.ImportFrom))][-1]
            changed = _replaced(text, (last.end_lineno or 0) + 1, (last.end_lineno or 0), self.code)
        elif self.how == "more lines":
            [found] = _named(ast.parse(text), self.place)
            end = max(node.end_lineno or 0 for node in found.body)
            changed = _replaced(text, end + 1, end, "\n" + textwrap.indent(self.code, "    "))
        elif self.how == "more entries":
            changed = self._with_entries(text)
        else:
            names = self.how.removeprefix("instead of ").split(" and ")
            assert self.how.startswith("instead of "), self.how
            [method] = _named(ast.parse(text), self.place)
            old = [
                node for node in method.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in names
            ]
            assert len(old) == len(names), f"{self.place} has not one {' and '.join(names)} each"
            new = textwrap.indent(self.code, " " * method.body[0].col_offset)
            for node in reversed(old):
                changed = text = _replaced(text, node.lineno, node.end_lineno or 0, new if node is old[0] else "")
        ast.parse(changed)
        path.write_text(changed)

    def _with_entries(self, text: str) -> str:
        """The literal's entries, behind those that are there; one with the same key in its place."""
        [holder] = _named(ast.parse(text), self.place)
        [given] = ast.parse(self.code).body
        new = given.value  # type: ignore[attr-defined]
        literal = next(node for node in ast.walk(holder) if isinstance(node, type(new)))
        entries = self.code.strip()[1:-1].strip().rstrip(",")
        if isinstance(new, ast.Dict):
            keys = [ast.unparse(key) for key in new.keys if key is not None]
            old = dict(zip([ast.unparse(key) for key in literal.keys], literal.values, strict=True))
            for key in reversed([key for key in old if key in keys]):
                # From the key's line to that of its value's end.
                node = next(node for node in literal.keys if ast.unparse(node) == key)
                text = _replaced(text, node.lineno, old[key].end_lineno or 0, "")
            [holder] = _named(ast.parse(text), self.place)
            literal = next(node for node in ast.walk(holder) if isinstance(node, type(new)))
        lines = text.splitlines(keepends=True)
        line = lines[(literal.end_lineno or 0) - 1]
        at = len(line.encode()[: (literal.end_col_offset or 0) - 1].decode())
        lines[(literal.end_lineno or 0) - 1] = f"{line[:at]}\n{entries},\n{line[at:]}"
        return "".join(lines)


def blocks() -> list[Block]:
    """All Python blocks, in order."""
    found = []
    for example in EXAMPLES[DOCUMENT]:
        head, _, code = example.code.lstrip("\n").partition("\n")
        told = _HEAD.fullmatch(head)
        assert told is not None, f"line {example.line} does not say where its block belongs: {head}"
        file, place = told["file"], told["place"] or ""
        if file == "the settings of production":
            file, place = _PRODUCTION
        found.append(Block(example.line, file, place, told["how"], code))
    return found


def _named(tree: ast.AST, place: str) -> list[ast.AST]:
    """The class, or the method or assignment in it."""
    name, _, inner = place.partition(".")
    classes = [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == name]
    if not inner:
        return list(classes)
    return [
        node
        for each in classes
        for node in each.body
        if getattr(node, "name", None) == inner
        or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == inner)
    ]


def _replaced(text: str, first: int, last: int, code: str) -> str:
    """Lines from first to last, counted from one, are now this code."""
    lines = text.splitlines(keepends=True)
    new = f"{code.rstrip()}\n" if code.strip() else ""
    return "".join([*lines[: first - 1], new, *lines[last:]])
