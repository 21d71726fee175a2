"""プロセスを二つ並べた実行が、一つの実行と同じ損失になり、一つの完全なフォルダを残すことを、CPU で試します。"""

import math
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from conftest import ROOT, arguments, finish

import dpo_helpers as dpo

pytestmark = pytest.mark.slow


def run_two(config, cwd):
    """README のとおりに、二つのプロセスで実行します。"""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
               str(ROOT / "dpo_helpers.py"), *arguments(config)]  # fmt: skip
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300, env=environment)


def test_two_processes_give_the_losses_of_one_and_leave_one_whole_folder(small_config, still_base, tmp_path):
    config = small_config(base_model=str(still_base), num_pairs=56)
    one, config = finish(config), replace(config, output_dir="two")
    done = run_two(config, tmp_path)
    assert done.returncode == 0, done.stderr[:3000]
    assert done.stdout.count("判定: ") == 1 and done.stdout.count("結果のフォルダ: two") == 1
    two = dpo.load_run(tmp_path / "two")
    names = [{path.name for path in run.config.folder.iterdir()} for run in (one, two)]
    assert names[0] == names[1] and not list(two.config.folder.rglob("*.tmp"))
    for name in ("loss", "rewards/margins"):
        losses = [[row[name] for row in run.history] for run in (one, two)]
        assert losses[1] == pytest.approx(losses[0], rel=0.02, abs=0.01)
    still = run_two(replace(config, learning_rate=1e-12, sft_epochs=0.0, output_dir="still"), tmp_path)
    assert still.returncode == 0, still.stderr[:3000]
    rows = dpo.read_lines(tmp_path / "still" / "history.jsonl")
    assert [row["loss/preference"] for row in rows] == pytest.approx([math.log(2)] * len(rows), abs=1e-4)
    again = run_two(config, tmp_path)
    assert again.returncode == 0 and again.stdout.count("この設定の学習は終わっている") == 1


def test_an_error_ends_both_processes_with_one_sentence(small_config, tmp_path):
    odd = run_two(small_config(gradient_accumulation_steps=3, output_dir="two"), tmp_path)
    assert odd.returncode != 0 and "プロセスが 2 個" in odd.stderr, odd.stderr[:3000]
    assert not (tmp_path / "two").exists()
