"""The commands ``check``, ``convert`` and ``split``."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from tuyi.cli.check import check
from tuyi.cli.convert import convert
from tuyi.cli.split import split
from tuyi.errors import ConfigError, OutputError

app = typer.Typer()
app.command()(check)
app.command()(convert)
app.command()(split)


def run(*words: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=True)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rows = [{"text": f"q{n}", "label": "ab"[n % 2]} for n in range(20)]
    (tmp_path / "d.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return tmp_path / "d.jsonl"


def test_check_exits_with_1_on_errors(file: Path) -> None:
    code, text = run("check", file)
    assert code == 0
    assert "20 rows (table)" in text
    code, text = run("check", file, "--task", "www2025/www2025-intent", "--limit", "2")
    assert code == 1
    assert "error: label (20)" in text
    assert "… and 18 more" in text
    code, text = run("check", file, "--against", file, "--json")
    assert code == 1
    assert json.loads(text)["kinds"] == {"leak": 20}


def test_check_of_a_missing_file(tmp_path: Path) -> None:
    code, text = run("check", tmp_path / "none.json")
    assert code == 1
    assert "there is no such file or folder" in text


def test_convert_with_read_options(file: Path, tmp_path: Path) -> None:
    code, text = run(
        "convert", file, tmp_path / "s.json", "--to", "sharegpt", "--read", "text=text", "--read", "label=label"
    )
    assert code == 0
    assert "20 rows (0 unlabelled), 0 pictures and videos, sharegpt format" in text
    assert (tmp_path / "dataset_info.json").is_file()
    with pytest.raises(OutputError, match="already there"):
        run("convert", file, tmp_path / "s.json", "--to", "sharegpt")
    with pytest.raises(ConfigError, match="txt: unknown setting; did you mean 'text'"):
        run("convert", file, tmp_path / "s2.json", "--to", "sharegpt", "--read", "txt=a")


def test_split_prints_counts(file: Path, tmp_path: Path) -> None:
    code, text = run("split", file, tmp_path / "out", "--parts", "train=0.5,dev=0.5", "--seed", "3")
    assert code == 0
    assert "all rows" in text
    assert "20 groups that share a picture or text" in text
    assert (tmp_path / "out" / "dev.jsonl").is_file()
    with pytest.raises(ConfigError, match="expected NAME=SHARE,NAME=SHARE, found 'train'"):
        run("split", file, tmp_path / "out2", "--parts", "train")


def test_importing_data_stays_light() -> None:
    code = (
        "import sys, tuyi.data; print([m for m in ('torch','pyarrow','PIL','av','numpy','ijson') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "[]"


def test_the_door_agrees_with_what_it_says() -> None:
    import tuyi.data

    assert len(tuyi.data.__all__) == 16
    assert all(hasattr(tuyi.data, name) for name in tuyi.data.__all__)
