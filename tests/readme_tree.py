"""The README's tree, made of what the files say of themselves; run as a program, it writes it there."""

from __future__ import annotations

import ast
import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("dags", "jobs", "model", "configs", "docker", "docs", "benchmarks")
BLOCK = re.compile(r"(?<=## What is where\n\n)```\n.*?\n```|@TREE@", re.DOTALL)


def tree() -> str:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", *FOLDERS],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.splitlines()  # fmt: skip
    files = sorted(
        {name for name in listed if (ROOT / name).exists() and not name.endswith((".airflowignore", ".png"))}
    )
    files.sort(key=lambda name: (FOLDERS.index(name.split("/")[0]), name))
    rows = [f"{name:28} {says}" for name in files if (says := _says(ROOT / name))]
    return "\n".join(["```", *rows, f"{'tests/':28} The same folders again, and what they must hold", "```"])


def _says(file: Path) -> str:
    text = file.read_text()
    if file.suffix == ".py":
        said = ast.get_docstring(ast.parse(text)) or ""
        return "" if file.name == "__init__.py" else _sentence(said.split("\n\n")[0])
    if file.suffix == ".md":
        return text.splitlines()[0].removeprefix("# ")
    if file.suffix == ".svg":
        return "The picture above"
    comments = [line.lstrip("# ") for line in text.splitlines()[:3] if line.startswith("# ")]
    return _sentence(comments[0]) if comments else ""


def _sentence(text: str) -> str:
    return re.split(r"(?<=\.) ", " ".join(text.split()))[0].rstrip(".")


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(BLOCK.sub(lambda _: tree(), readme.read_text(), count=1))
