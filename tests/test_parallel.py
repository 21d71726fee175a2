"""プロセスを二つ並べた実行（DDP）が、一つの実行と同じ損失になり、一つの完全なフォルダを残すことを、CPU で試します。"""

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict

import pytest
from conftest import ROOT, run_cli

import dpo_helpers as dpo

pytestmark = pytest.mark.slow
NOT_SETTINGS = ("output_dir",)


def arguments(config):
    settings = {name: value for name, value in asdict(config).items() if name not in NOT_SETTINGS and value is not None}
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]


def run_two(*args, cwd):
    """README のとおりに、二つのプロセスで実行します。"""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port),
               str(ROOT / "dpo_helpers.py"), *args]  # fmt: skip
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600, env=environment)


@pytest.fixture(scope="module")
def runs(small_config, still_base, tmp_path_factory):
    """(一つのプロセスのフォルダ, 二つのプロセスのフォルダ, その出力) です。"""
    folder = tmp_path_factory.mktemp("parallel")
    args = arguments(small_config(base_model=str(still_base), num_pairs=56, num_train_epochs=6.0))
    assert len(dpo.split_pairs(dpo.build_pairs(56))[0]) % 4 == 0  # 最後の更新も、二つに等しく分かれる
    one = run_cli(*args, "--output_dir", "one", cwd=folder)
    two = run_two(*args, "--output_dir", "two", cwd=folder)
    assert one.returncode == 0 and two.returncode == 0, two.stderr[-3000:]
    return folder / "one", folder / "two", two


def history(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_two_processes_give_the_losses_of_one(runs):
    one, two, _ = runs
    rows = list(zip(history(one), history(two), strict=True))
    assert len(rows) > 60
    for name in ("loss", "loss/preference", "loss/sft", "rewards/margins"):
        scale = 16 if name == "loss" else 1  # 既定の SFT の項の重み
        assert max(abs(left[name] - right[name]) for left, right in rows) < 1e-3 * scale


def test_two_processes_leave_one_whole_folder(runs):
    one, two, done = runs
    assert {path.name for path in two.iterdir()} == {path.name for path in one.iterdir()}
    metrics = [json.loads((folder / "metrics.json").read_text()) for folder in (one, two)]
    assert metrics[1]["verdict"] == metrics[0]["verdict"]
    assert metrics[1]["accuracy_after"] == pytest.approx(metrics[0]["accuracy_after"], abs=0.13)
    run = dpo.load_run(two)
    assert isinstance(dpo.generate_response("AIとは何ですか？", run.model, run.tokenizer), str)
    assert not any(path.suffix == ".tmp" or path.name == "data" for path in two.rglob("*"))
    assert done.stdout.count("評価しています") == 1 and done.stdout.count("結果のフォルダ: two") == 1


def test_two_processes_go_on_after_a_kill_and_say_when_finished(runs, small_config, still_base):
    _, two, _ = runs
    (two / "metrics.json").unlink()
    args = arguments(small_config(base_model=str(still_base), num_pairs=56, num_train_epochs=6.0))
    again = run_two(*args, "--output_dir", "two", cwd=two.parent)
    assert again.returncode == 0, again.stderr[-3000:]
    assert json.loads((two / "metrics.json").read_text())["resumed_from_step"] >= 50
    finished = run_two(*args, "--output_dir", "two", cwd=two.parent)
    assert finished.returncode == 0 and finished.stdout.count("すでに終わっています") == 1


def test_an_error_ends_both_processes_with_one_sentence(small_config, tmp_path):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "other.txt").write_text("別のもの")
    done = run_two(*arguments(small_config()), "--output_dir", "used", cwd=tmp_path)
    assert done.returncode != 0 and done.stderr.count("別のものがあります") >= 1
    odd = run_two(*arguments(small_config(gradient_accumulation_steps=3)), "--output_dir", "odd", cwd=tmp_path)
    assert odd.returncode != 0 and "2 個のプロセスに等分できません" in odd.stderr
    assert not (tmp_path / "odd").exists()
