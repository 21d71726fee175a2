"""設定を変えた実行を並べる sweep と、その図を確かめます。"""

import signal
import subprocess
import sys
from dataclasses import asdict

import pandas as pd
import pytest
from conftest import ROOT

import dpo_helpers as dpo

GRID = {"beta": [0.1, 0.5], "learning_rate": [5e-6, 1e-5, 2e-5]}
TIMING = ["train_seconds", "folder"]


@pytest.fixture(scope="module")
def swept(small_config, tmp_path_factory):
    """六回の sweep の、(設定, フォルダ, 表, 表示した文, 計算した回数)です。"""
    from trl import DPOTrainer

    counts = {"sft": 0, "reference": 0, "generated": 0}
    with pytest.MonkeyPatch.context() as patch:
        for owner, name, key in ((dpo, "_supervised", "sft"), (dpo, "generate_responses", "generated"),
                                 (DPOTrainer, "compute_ref_log_probs", "reference")):  # fmt: skip
            patch.setattr(owner, name, counting(getattr(owner, name), counts, key))
        config, folder, said = small_config(), tmp_path_factory.mktemp("sweep"), []
        table = dpo.sweep(config, GRID, folder=folder, report=said.append)
    return config, folder, table, said, counts


def counting(function, counts, key):
    def call(*args, **options):
        counts[key] += 1
        return function(*args, **options)

    return call


def test_every_combination_has_its_row_and_the_table_is_saved(swept):
    _, folder, table, said, _ = swept
    assert len(table) == 6 and set(zip(table["beta"], table["learning_rate"], strict=True)) == {
        (beta, rate) for beta in GRID["beta"] for rate in GRID["learning_rate"]
    }
    assert table["error"].isna().all() and table["accuracy_after"].between(0, 1).all()
    saved = pd.read_csv(folder / "results.csv")
    pd.testing.assert_frame_equal(saved.drop(columns="error"), table.drop(columns="error"), check_dtype=False)
    assert len(said) == 6 and said[0].startswith("1/6") and "残り約 0 秒" in said[-1]


def test_what_runs_have_in_common_is_done_once(swept):
    """学習率が同じ二つは、SFT と参照モデルを共有します。元のモデルと SFT のあとの回答も、一度だけ作ります。"""
    *_, counts = swept
    assert counts == {"sft": 3, "reference": 3 * 2, "generated": 3 * 3 + 3}  # 参照は 51 対を 32 対ずつ


def test_a_row_of_the_sweep_equals_a_single_run(swept, small_config):
    config, _, table, *_ = swept
    single = dpo.train(small_config(beta=0.5, learning_rate=2e-5))
    metrics, row = dpo.evaluate_run(single), table.iloc[5]
    for name in ("final_loss", "accuracy_after", "margin_after", "drift"):
        assert row[name] == pytest.approx(metrics[name], abs=1e-6)
    assert dpo.load_run(row["folder"]).metrics["verdict"] == metrics["verdict"]


def test_called_again_it_runs_nothing_and_gives_the_same_table(swept, monkeypatch):
    config, folder, table, *_ = swept
    monkeypatch.setattr(dpo, "train", lambda *args, **options: pytest.fail("もう一度学習しました"))
    pd.testing.assert_frame_equal(dpo.sweep(config, GRID, folder=folder, report=lambda text: None), table)


KILLED = """
import os, sys
sys.path.insert(0, {root!r})
import dpo_helpers as dpo
started = []
def watch(status, history):
    started.extend([True] * (status["phase"] == "DPO" and status["step"] == 1))
    if len(started) == 3 and status["step"] == 5:
        os.kill(os.getpid(), 9)
dpo.sweep(dpo.Config(**{config!r}), {grid!r}, folder={folder!r}, watch=watch)
"""


def test_killed_in_the_third_run_it_goes_on_and_ends_with_the_same_table(swept, tmp_path):
    config, _, table, *_ = swept
    code = KILLED.format(root=str(ROOT), config=asdict(config), grid=GRID, folder=str(tmp_path))
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == -signal.SIGKILL
    before = pd.read_csv(tmp_path / "results.csv")
    assert len(before) == 2
    times = [(dpo.Path(folder) / "metrics.json").stat().st_mtime_ns for folder in before["folder"]]
    again = dpo.sweep(config, GRID, folder=tmp_path, report=lambda text: None)
    assert times == [(dpo.Path(folder) / "metrics.json").stat().st_mtime_ns for folder in before["folder"]]
    pd.testing.assert_frame_equal(again.drop(columns=TIMING), table.drop(columns=TIMING))


def test_a_failed_run_keeps_its_error_and_the_rest_goes_on(small_config, tmp_path):
    grid = [{"beta": 0.1}, {"max_length": 512}, {"loss_type": "ipo"}]
    table = dpo.sweep(small_config(), grid, folder=tmp_path, report=lambda text: None)
    assert table["error"].isna().tolist() == [True, False, True]
    assert "このモデルの上限 256 以下" in table["error"][1]


@pytest.mark.parametrize("grid, word", [({"betta": [0.1]}, "betta"), ({"beta": [-1.0]}, "beta が -1.0")])
def test_a_mistaken_grid_is_refused_before_the_first_run(grid, word, small_config, tmp_path):
    with pytest.raises(dpo.HelperError, match=word):
        dpo.sweep(small_config(), {"seed": [1]} | grid, folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_label_noise_swaps_that_share_of_the_training_pairs_only(small_config):
    clean, noisy = (dpo.train(small_config(label_noise=noise, sft_epochs=0.0)) for noise in (0.0, 0.2))
    swapped = [a["chosen"] == b["rejected"] for a, b in zip(clean.train_pairs, noisy.train_pairs, strict=True)]
    assert sum(swapped) == round(0.2 * len(swapped))
    assert noisy.eval_pairs.to_list() == clean.eval_pairs.to_list()
    robust = dpo.train(small_config(label_noise=0.2, sft_epochs=0.0, loss_type="robust", label_smoothing=0.2))
    assert robust.history[5]["loss/preference"] != noisy.history[5]["loss/preference"]


def test_figures_mark_the_best_and_name_every_setting(swept, small_config, tmp_path):
    *_, table, _, _ = swept
    figure = dpo.plot_sweep(table)
    curves, heat_map, _ = figure.axes
    labels = [text.get_text() for text in curves.get_legend().get_texts()]
    assert "beta=0.1, learning_rate=5e-06" in labels and len(labels) == 7
    assert any("★" in text.get_text() for text in heat_map.texts) and len(heat_map.texts) == 6
    one = table[table["learning_rate"] == 5e-6].drop(columns="learning_rate")
    seeds = pd.concat([one, one.assign(seed=1, accuracy_after=one["accuracy_after"] / 2)])
    figure = dpo.plot_sweep(seeds)
    assert "seeds" in figure.axes[1].get_xlabel()
    assert [line.get_marker() for line in figure.axes[1].lines].count("*") >= 1
    figure.savefig(tmp_path / "sweep.png")
