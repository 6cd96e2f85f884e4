#!/usr/bin/env python3
"""Writes the sync half of the library from the async half, or with ``--check`` says where the two differ.

The source stays ordinary Python. Two comments say what has no twin:

- ``# async-only`` at the end of a line drops the statement or the clause that begins there, with its body;
- ``# sync-only: CODE`` becomes ``CODE``.

``await``, ``__aenter__`` and the other words of `RULES` are replaced everywhere, in docstrings too.
"""

from __future__ import annotations

import argparse
import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent

TREES = {
    "clusterports/_async": "clusterports/_sync",
    "backends/clusterports_redis/_async.py": "backends/clusterports_redis/_sync.py",
    "backends/clusterports_redis/_async_cluster.py": "backends/clusterports_redis/_sync_cluster.py",
    "backends/clusterports_redis/_async_link.py": "backends/clusterports_redis/_sync_link.py",
}

RULES = {
    r"\basync (?=(def|with|for)\b)": "",
    r"\(await ((\([^()]*\)|[^()])*)\)\.": r"\1.",  # (await read()).name
    r"\bawait ": "",
    r"\b__a(?=(enter|exit|iter|next)__)": "__",
    r"\bAsync(?=[A-Z])": "",
    r"\bconnect_async\b": "connect",
    r"\b_async_(?=(cluster|link)\b)": "_sync_",
    r"\bredis\.asyncio\b": "redis",
    r"\bdisconnect\(nowait=True\)": "disconnect()",
}

ASYNC_ONLY = re.compile(r"# async-only$")
SYNC_ONLY = re.compile(r"# sync-only: ")


def without_async_only(text: str, name: str) -> str:
    lines = text.splitlines(keepends=True)
    marked = {number for number, line in enumerate(lines, 1) if ASYNC_ONLY.search(line.rstrip())}
    for node in ast.walk(ast.parse(text, name)):
        if isinstance(node, ast.stmt | ast.ExceptHandler) and node.lineno in marked and node.end_lineno:
            first = min([node.lineno, *(item.lineno for item in getattr(node, "decorator_list", ()))])
            lines[first - 1 : node.end_lineno] = [""] * (node.end_lineno - first + 1)
            marked.discard(node.lineno)
    if marked:
        sys.exit(f"{name}: no statement begins on line {min(marked)}, which is marked async-only")
    return "".join(lines)


def ruff(text: str, target: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "ruff", *arguments, f"--stdin-filename={target}", "-"]
    return subprocess.run(command, input=text, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT).stdout


def translate(source: Path, target: Path, fired: set[str]) -> str:
    name = source.relative_to(ROOT).as_posix()
    text = SYNC_ONLY.sub("", without_async_only(source.read_text(encoding="utf-8"), name))
    for pattern, replacement in RULES.items():
        text, count = re.subn(pattern, replacement, text)
        if count:
            fired.add(pattern)
    text = f"# Generated from {name} by .ci/unasync.py; do not edit.\n\n{text}"
    text = ruff(text, target, "check", "--quiet", "--select=I,F401", "--fix-only")
    return ruff(text, target, "format", "--quiet")


def pairs() -> Iterator[tuple[Path, Path]]:
    for source, target in ((ROOT / source, ROOT / target) for source, target in TREES.items()):
        if source.is_dir():
            yield from ((path, target / path.relative_to(source)) for path in sorted(source.rglob("*.py")))
        elif source.exists():
            yield source, target


def orphans(targets: set[Path]) -> list[Path]:
    trees = [ROOT / tree for tree in TREES.values()]
    found = [path for tree in trees for path in ([tree] if tree.suffix else sorted(tree.rglob("*.py")))]
    return [path for path in found if path.exists() and path not in targets]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where something differs")
    check: bool = parser.parse_args().check

    fired: set[str] = set()
    faults: list[str] = []
    targets: set[Path] = set()
    for source, target in pairs():
        targets.add(target)
        text = translate(source, target, fired)
        if target.exists() and target.read_text(encoding="utf-8") == text:
            continue
        if check:
            faults.append(f"{target.relative_to(ROOT)}: differs from what {source.relative_to(ROOT)} gives")
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(text, encoding="utf-8")
            print(f"wrote {target.relative_to(ROOT)}")
    faults += [f"{path.relative_to(ROOT)}: has no source" for path in orphans(targets)]
    faults += [f"rule {pattern!r}: never applied" for pattern in RULES if pattern not in fired]
    sys.exit("\n".join(faults) or 0)


if __name__ == "__main__":
    main()
