"""No password is printed, whatever echoes the text that holds it."""

import pickle
from pathlib import Path

import pytest

from stem_torchrec.cli import main
from stem_torchrec.config.hints import unknown_key
from stem_torchrec.errors import (
    CheckpointError,
    UserError,
    WorkerError,
    shown,
    without_passwords,
)

SECRET = "hunter2hunter2"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"s3://KEY:{SECRET}@bucket/x", "s3://...@bucket/x"),
        (f"HTTPS://{SECRET}@host:80/x", "HTTPS://...@host:80/x"),
        (f"no file 'https:/KEY:{SECRET}@host/x'", "no file 'https:/...@host/x'"),
        (f"s3://KEY:a/{SECRET}+/b@bucket/x?y=1", "s3://...@bucket/x?y=1"),
        (f"{{'a': 's3+ssl://:{SECRET}@b', 'c': 1}}", "{'a': 's3+ssl://...@b', 'c': 1}"),
        (f"s3://b/x?region=r&Secret_Key={SECRET}&z=1", "s3://b/x?region=r&Secret_Key=...&z=1"),
        (f"https://b/x?X-Amz-Signature={SECRET}'", "https://b/x?X-Amz-Signature=...'"),
        (f"a://u:{SECRET}@h and b://v:{SECRET}@i", "a://...@h and b://...@i"),
    ],
)
def test_passwords_are_left_out(text: str, shown: str) -> None:
    assert without_passwords(text) == shown
    for error in (UserError(text), WorkerError(text), CheckpointError(text)):
        assert str(error) == shown
        assert str(pickle.loads(pickle.dumps(error))) == shown


def test_nor_where_a_long_text_is_cut() -> None:
    url = f"s3://KEY:{SECRET * 20}@bucket/x"
    assert shown(url) == "'s3://...@bucket/x'"
    assert SECRET not in shown({"a": [url]})
    assert SECRET not in unknown_key(url, [], ["run.dir"])


@pytest.mark.parametrize(
    "text",
    [
        *("s3://bucket/user@home/x", "hdfs://node:8020/user@home", "/data/a:b@c", "x@y.org"),
        *("file:///data/a@b", "s3://bucket and then a@b", "s3://b/x?region=eu&scheme=http"),
    ],
)
def test_other_texts_stay(text: str) -> None:
    assert without_passwords(text) == text


@pytest.mark.parametrize("scheme", ["s3", "S3", "https", "gs", "mongodb+srv"])
def test_no_command_prints_a_password(
    scheme: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{scheme}://KEY:{SECRET}@host/x"
    config, broken = tmp_path / "c.yaml", tmp_path / "broken.yaml"
    config.write_text("run: {dir: r}\ndata: {path: d}\n")
    broken.write_text(f"run: {{dir: {url}}}\ndata: {{path: [{url}}}\n")
    train = ["train", "--config", str(config)]
    for command in (
        [*train, "--data.path", url],
        [*train, "--run.dir", url],
        [*train, "--model.name", url],
        [*train, "--run.seed", url],
        [*train, f"--{url}", "1"],
        [*train, url],
        [*train, "--init-from", url],
        ["train", "--config", str(broken)],
        ["train", "--config", url],
        ["evaluate", "--run", url],
        ["prepare", "--check", url],
        ["prepare", url],
        ["prepare", "synthetic", "--out", url],
        ["prepare", "kuairand", "--source", url, "--out", str(tmp_path / "out")],
        ["prepare", "csv", "--source", url, "--describe", str(config), "--out", url],
        ["prepare", "tiktok", "--source", url, "--out", str(tmp_path / "out")],
        [url],
    ):
        try:
            code = main(command)
        except SystemExit as ended:  # argparse
            code = ended.code  # type: ignore[assignment]
        printed = "".join(capsys.readouterr())
        assert code == 2, printed
        assert SECRET not in printed, command
        assert "KEY:" not in printed, command
