"""どこで kill -9 しても、同じコマンドでやり直せば、止めなかったときと同じアダプタになることを確かめます。

止める所は、元のモデル、SFT、DPO とチェックポイント、評価と保存から五つずつの、二十か所です。ふだんは SFT、DPO、保存の
三か所だけ、環境変数 DPO_ALL_KILLS=1 があれば、すべてを試します。
"""

import json
import os
import signal
import subprocess
import sys

import pytest
from conftest import ROOT
from test_training import adapter_difference

STAGES = ("SFT 1", "DPO 1", "採点")  # それぞれの段階の、最初の出来事
TRIED = range(20) if os.environ.get("DPO_ALL_KILLS") else (7, 11, 18)


def run(stop_at, log, folder):
    command = [sys.executable, ROOT / "tests" / "killed_run.py", stop_at, log, "--base_model", "offline-tiny",
               "--num_pairs", "320", "--max_length", "64", "--sft_epochs", "0.5", "--output_dir", folder]  # fmt: skip
    return subprocess.run(list(map(str, command)), capture_output=True, text=True)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """(止めなかった実行のフォルダ, 止める二十か所の出来事の番号)です。"""
    folder = tmp_path_factory.mktemp("kill")
    done = run(0, folder / "events.txt", folder / "out")
    assert done.returncode == 0, done.stderr[-3000:]
    events = (folder / "events.txt").read_text("utf-8").splitlines()
    edges = [0, *(events.index(name) for name in STAGES), len(events)]
    points = []
    for start, end in zip(edges, edges[1:], strict=False):
        steady = ("元のモデル", "SFT", "DPO")  # 同じような更新ばかりにならないように、十回に一つだけ候補にする
        stage = [i for i in range(start, end) if not events[i].startswith(steady) or events[i].endswith("0")]
        points += [stage[round((k + 0.5) * len(stage) / 5 - 0.5)] for k in range(5)]
    return folder / "out", points, events


@pytest.mark.slow
@pytest.mark.parametrize("which", TRIED)
def test_a_run_killed_anywhere_ends_with_the_same_adapter(which, uninterrupted, tmp_path):
    whole, points, events = uninterrupted
    print(f"止める所: {points[which]}/{len(events)} {events[points[which]]}")
    killed = run(points[which] + 1, tmp_path / "events.txt", tmp_path / "out")
    assert killed.returncode == -signal.SIGKILL, killed.stderr[-3000:]
    again = run(0, tmp_path / "events.txt", tmp_path / "out")
    assert again.returncode == 0, again.stderr[-3000:]
    assert adapter_difference(whole, tmp_path / "out") < 1e-6
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {path.name for path in whole.iterdir()}, "書きかけのものが残っています"
    before, after = (json.loads((folder / "metrics.json").read_text("utf-8")) for folder in (whole, tmp_path / "out"))
    assert after["final_loss"] == before["final_loss"] and after["accuracy_after"] == before["accuracy_after"]
