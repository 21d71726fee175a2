"""kill -9、Ctrl-C、ディスクの空き不足のあと、同じコマンドで続ければ、止めなかったときと同じ結果になることを確かめます。

環境変数 DPO_ALL_KILLS=1 があれば、出来事を 40 に分けたそれぞれでの kill -9 も試します。
"""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, adapter_difference

pytestmark = pytest.mark.slow
ENDS = {"SIGKILL": (-signal.SIGKILL, "モデル: "), "SIGINT": (130, "中止しました。"), "ENOSPC": (2, "エラー: フォルダ "),
        "FSIZE": (2, "エラー: フォルダ ")}  # fmt: skip


@pytest.fixture(scope="module")
def tried(small_base, tmp_path_factory):
    """(失敗させなかった実行のフォルダ, 失敗させてやり直した実行のリスト)です。"""
    folder = tmp_path_factory.mktemp("kill")
    command = [sys.executable, str(ROOT / "tests" / "killed_run.py"), str(small_base), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder / "whole", [json.loads(line) for line in done.stdout.splitlines()]


def results(folder):
    """止めても変わらないはずの、ファイルの名前と指標です。"""
    metrics = json.loads((folder / "metrics.json").read_text("utf-8"))
    return {path.name for path in folder.iterdir()}, [metrics[name] for name in ("final_loss", "eval_loss", "answers")]


@pytest.mark.parametrize("how", ENDS)
def test_a_run_stopped_anywhere_ends_with_the_same_adapter(how, tried):
    whole, cases = tried
    for case in [case for case in cases if case["how"] == how]:
        (code, shown), again, (expected, sentence) = case["first"], case["again"], ENDS[how]
        assert code == expected and shown.count(sentence) == 1 and "Traceback" not in shown, (case["case"], shown)
        assert again[0] == 0, case
        assert adapter_difference(whole, Path(case["folder"])) < 1e-6, case["case"]
        assert results(Path(case["folder"])) == results(whole), case["case"]
