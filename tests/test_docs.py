"""Every Python example in README.md and docs/ runs, and none of the texts names this machine.

The examples of one file run in order in one process and share their names, in an empty folder. What a reader
is to see but this machine cannot run has a reason in a comment right above it:

    <!-- not run: needs your own bucket -->
    ```python
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXTS = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *ROOT.glob("docs/**/*.md")])
PROGRAMS = sorted((ROOT / "examples").glob("*.py"))

_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>[^>]+) -->\n)?"
    r"(?P<indent> *)```(?P<language>[\w-]*)[^\n]*\n(?P<code>.*?)^(?P=indent)```",
    re.DOTALL | re.MULTILINE,
)
# Absolute paths of somebody's machine, and private hosts.
_MACHINE = re.compile(r"/(?:root|work|home/\w+|Users/\w+)/[\w.]|(?<![\w.])(?:10|192\.168)\.\d+\.\d+")


@dataclass(frozen=True)
class Example:
    text: Path
    line: int
    code: str
    reason: str | None


def python_blocks(text: Path) -> list[Example]:
    content = text.read_text(encoding="utf-8")
    return [
        # Blank lines keep the line numbers of a traceback those of the text.
        Example(text, line := content.count("\n", 0, match.start("code")), "\n" * line + match["code"], match["reason"])
        for match in _BLOCK.finditer(content)
        if match["language"] in ("python", "py")
    ]


EXAMPLES = {text: python_blocks(text) for text in TEXTS}


@pytest.mark.parametrize("text", [text for text in TEXTS if EXAMPLES[text]], ids=lambda text: text.name)
def test_the_examples_of_a_text_run_in_order(text: Path, tmp_path: Path) -> None:
    runnable = [example for example in EXAMPLES[text] if example.reason is None]
    if not runnable:
        pytest.skip("; ".join(example.reason or "" for example in EXAMPLES[text]))
    script = "names = {'__name__': 'example'}\n" + "".join(
        f"exec(compile({example.code!r}, {text.name!r}, 'exec'), names)\n" for example in runnable
    )
    run(["-c", script], tmp_path)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_the_example_programs_run(program: Path, tmp_path: Path) -> None:
    run([str(program)], tmp_path)


@pytest.mark.parametrize(
    "example",
    [example for examples in EXAMPLES.values() for example in examples if example.reason],
    ids=lambda example: f"{example.text.name}:{example.line}",
)
def test_an_example_that_is_not_run_is_python_at_least(example: Example) -> None:
    compile(example.code, example.text.name, "exec")
    pytest.skip(example.reason or "")


def test_readme_has_examples_that_run() -> None:
    assert [example for example in EXAMPLES[ROOT / "README.md"] if example.reason is None]


def test_reliability_names_every_step_and_only_tests_that_exist() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    steps = set(re.findall(r'=> "([a-z-]+)"', (ROOT / "src" / "base" / "steps.rs").read_text(encoding="utf-8")))
    assert len(steps) == 16
    assert steps == {name for name in re.findall(r"`([a-z]+(?:-[a-z]+)?)`", text) if name in steps}
    named = set(re.findall(r"`((?:tests|benches|fuzz)/[\w/.]*)`", text))
    assert len(named) > 12
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_no_text_names_a_machine() -> None:
    looked_at = [*TEXTS, *(ROOT / "python").rglob("*.py"), *ROOT.glob("examples/**/*")]
    looked_at = [path for path in looked_at if path.is_file() and path.suffix in (".md", ".py", ".ipynb", ".toml")]
    assert len(looked_at) > 5
    found = [
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in looked_at
        for match in _MACHINE.finditer(path.read_text(encoding="utf-8"))
    ]
    assert not found


def run(arguments: list[str], folder: Path) -> None:
    environment = {**os.environ, "PYTHONWARNINGS": "error::DeprecationWarning:parquet_analytics"}
    result = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
