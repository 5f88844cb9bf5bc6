"""What README and guide show works as it is shown."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
from benchmarks.tables import TABLES

from penstock.cli.app import app
from penstock.demo_models import minilm_folder

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
COMMANDS = [shlex.split(line) for line in re.findall(r"^\$ penstock (.*)$", README, re.MULTILINE)]
GUIDE = (ROOT / "docs" / "guide.md").read_text()
GUIDE_SNIPPETS = re.findall(r"^```python\n(.*?)^```$", GUIDE, re.DOTALL | re.MULTILINE)
GUIDE_COMMANDS = [shlex.split(line) for line in re.findall(r"^\$ penstock (.*)$", GUIDE, re.MULTILINE)]
MINILM = "models/all-MiniLM-L6-v2"


def test_every_snippet_runs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))  # a newcomer's is empty
    monkeypatch.chdir(tmp_path)
    Path(MINILM).parent.mkdir()
    Path(MINILM).symlink_to(minilm_folder())
    names: dict[str, object] = {}
    for snippet in SNIPPETS:
        exec(compile(snippet, "README.md", "exec"), names)
    names.clear()
    told = capsys.readouterr().out
    assert "Plan (optimal) for a budget of 16.0 MiB" in told
    assert re.search(r"give it \d+ bytes", told)


def test_the_session_is_eight_lines() -> None:
    assert len([line for line in SNIPPETS[0].splitlines() if line]) == 8


def test_the_guides_python_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PENSTOCK_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for snippet in GUIDE_SNIPPETS:
        exec(compile(snippet, "guide.md", "exec"), {})
    written = {file.name for file in tmp_path.iterdir()}
    assert {"curve.png", "curve.html", "real.json", "predicted.json"} <= written


@pytest.mark.parametrize("command", [*COMMANDS, *GUIDE_COMMANDS], ids=" ".join)
def test_every_command_line_is_understood(command: list[str]) -> None:
    name, *arguments = command
    typer.main.get_command(app).commands[name].make_context(name, arguments)  # type: ignore[attr-defined]


def test_every_command_is_shown() -> None:
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert {command[0] for command in COMMANDS} == set(known) - {"demo"}


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^ {4}|`)make (\w+)", README, re.MULTILINE))
    assert {"demo", "test"} <= named <= targets


def test_every_benchmark_table_has_its_place() -> None:
    assert re.findall(r"^<!-- benchmark:(\w+) -->$", README, re.MULTILINE) == list(TABLES)
    assert re.findall(r"^<!-- /benchmark:(\w+) -->$", README, re.MULTILINE) == list(TABLES)


def test_every_link_into_the_repository_leads_somewhere() -> None:
    for text, folder in ((README, ROOT), (GUIDE, ROOT / "docs")):
        links = re.findall(r"\]\((?!https?://|#)([^)#]+)", text)
        assert links
        assert [link for link in links if not (folder / link).exists()] == []
