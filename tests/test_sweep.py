"""設定を変えた実行を並べる sweep と、その図を確かめます。"""

import json
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace

import pandas as pd
import pytest
from conftest import ROOT

import dpo_helpers as dpo

GRID = {"beta": [0.1, 0.5], "learning_rate": [5e-6, 1e-5, 2e-5]}
TIMING = ["train_seconds", "total_seconds", "pairs_per_second", "peak_memory_gb", "folder"]  # 実行ごとに違う列


@pytest.fixture(scope="module")
def swept(small_config, tmp_path_factory):
    """六回の sweep の、(設定, フォルダ, 表, 表示した文, 計算した回数)です。"""
    counts = {"sft": 0, "scored": 0, "generated": 0}
    with pytest.MonkeyPatch.context() as patch:
        for name, key in (("_supervised", "sft"), ("generate_responses", "generated"), ("answer_logps", "scored")):
            patch.setattr(dpo, name, counting(getattr(dpo, name), counts, key))
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
    # 採点は、片方の回答につき一回: 初めの実行では検証用を三つ、学習用を二つのモデルで、あとの実行では DPO のあとだけ
    assert counts == {"sft": 3, "scored": 2 * (3 * 5 + 3 * 2), "generated": 3 * 3 + 3}


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


@pytest.mark.slow
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


@pytest.mark.parametrize("grid, word", [
    ({"betta": [0.1]}, "betta"), ({"beta": [0.1, -1.0]}, "beta が -1.0"), ({"seed": [1]}, "種は seeds"),
    ([{}, {"output_dir": "a"}], "置き場は folder"), ({"loss_type": "ipo"}, "リストに"), ({"beta": 0.1}, "リストに"),
])  # fmt: skip
def test_a_mistaken_grid_is_refused_before_the_first_run(grid, word, small_config, tmp_path):
    with pytest.raises(dpo.HelperError, match=word):
        dpo.sweep(small_config(), grid, folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_another_table_in_the_same_folder_uses_the_runs_that_are_there(swept, monkeypatch):
    config, folder, table, *_ = swept
    monkeypatch.setattr(dpo, "train", lambda *args, **options: pytest.fail("もう一度学習しました"))
    other = dpo.sweep(config, [{"beta": 0.1}, {"beta": 0.5}], folder=folder, name="beta", report=lambda text: None)
    assert other["folder"].tolist() == table["folder"][[0, 3]].tolist()
    assert len(pd.read_csv(folder / "beta.csv")) == 2 and len(pd.read_csv(folder / "results.csv")) == 6


def test_finished_runs_come_back_from_drive_on_a_new_machine(small_config, tmp_path, monkeypatch):
    config, drive, grid = small_config(), tmp_path / "drive", {"beta": [0.1, 0.5]}
    drive.mkdir()
    options = {"folder": tmp_path / "here", "report": lambda text: None, "drive": drive}
    table = dpo.sweep(config, grid, **options)
    shutil.rmtree(tmp_path / "here")
    monkeypatch.setattr(dpo, "train", lambda *args, **options: pytest.fail("もう一度学習しました"))
    pd.testing.assert_frame_equal(dpo.sweep(config, grid, **options), table)
    run = dpo.load_run(table["folder"][1])
    assert dpo.score_pairs(run)["margin"].mean() == pytest.approx(table["margin_after"][1], abs=1e-5)


def test_a_damaged_run_on_drive_is_made_whole_again(small_config, tmp_path):
    config, drive = small_config(sft_epochs=0.0), tmp_path / "drive"
    drive.mkdir()
    options = {"folder": tmp_path / "here", "report": lambda text: None, "drive": drive}
    (folder,) = dpo.sweep(config, [{}], **options)["folder"]
    there = drive / "here" / dpo.Path(folder).name
    (there / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    shutil.rmtree(tmp_path / "here")
    dpo.sweep(config, [{}], **options)
    assert dpo._is_whole(there) and dpo.load_run(there)


def test_drive_that_went_away_does_not_stop_the_sweep_and_gets_the_runs_later(small_config, tmp_path):
    config, said, options = small_config(), [], {"folder": tmp_path / "s", "drive": tmp_path / "drive"}
    table = dpo.sweep(config, [{}], report=said.append, **options)
    assert table["error"].isna().all() and "Google Drive に保存できませんでした" in said[0]
    assert not (tmp_path / "drive").exists()  # 外れた Drive の場所に、ふつうのフォルダを作らない
    (tmp_path / "drive").mkdir()
    dpo.sweep(config, [{}], report=said.append, **options)
    assert (tmp_path / "drive" / "s" / dpo.Path(table["folder"][0]).name / "DONE").is_file()


def test_label_noise_swaps_that_share_of_the_training_pairs_only(small_config):
    clean, noisy = (dpo.train(small_config(label_noise=noise, sft_epochs=0.0)) for noise in (0.0, 0.2))
    swapped = [a["chosen"] == b["rejected"] for a, b in zip(clean.train_pairs, noisy.train_pairs, strict=True)]
    assert sum(swapped) == round(0.2 * len(swapped))
    assert noisy.eval_pairs.to_list() == clean.eval_pairs.to_list()
    robust = dpo.train(small_config(label_noise=0.2, sft_epochs=0.0, loss_type="robust", label_smoothing=0.2))
    assert robust.history[5]["loss/preference"] != noisy.history[5]["loss/preference"]


def test_swapped_pairs_are_spread_over_the_whole_training():
    pairs, _ = dpo.split_pairs(dpo.build_pairs(1000))
    mixed = dpo._shuffled(dpo._flip(pairs, 0.2, 42), 42)
    good = set(pairs["chosen"])
    swapped = [i for i, answer in enumerate(mixed["chosen"]) if answer not in good]
    assert abs(sum(swapped) / len(swapped) / len(mixed) - 0.5) < 0.06


def test_a_share_of_the_training_pairs_keeps_couples_together_and_the_held_out_pairs(small_config):
    whole, part = (dpo.train(small_config(train_share=share, sft_epochs=0.0)) for share in (1.0, 0.3))
    assert len(part.train_pairs) == round(0.3 * len(whole.train_pairs) / 2) * 2
    assert part.eval_pairs.to_list() == whole.eval_pairs.to_list()
    rows = whole.train_pairs.to_list()
    couples = [rows[i : i + 2] for i in range(0, len(rows), 2)]
    kept = part.train_pairs.to_list()
    assert all(kept[i : i + 2] in couples for i in range(0, len(kept), 2))


def test_the_time_is_estimated_for_the_runs_that_are_left(small_config, tmp_path):
    config, grids = small_config(), [{"beta": [0.1, 0.5]}, {"num_train_epochs": [1.0, 3.0]}, {"beta": [0.1]}]
    runs, seconds = dpo.estimate_time(config, grids, folder=tmp_path)  # beta=0.5 と 1 エポックは、初めの設定
    default = pd.read_csv(tmp_path / "default.csv").iloc[0]
    rest = default["total_seconds"] - default["train_seconds"]
    assert runs == 2 and seconds == pytest.approx(4 * 51 / default["pairs_per_second"] + 2 * rest)
    for grid in grids:
        dpo.sweep(config, grid, folder=tmp_path, report=lambda text: None)
    assert dpo.estimate_time(config, [*grids, {"dataset": ["none.csv"]}], folder=tmp_path) == (0, 0)


def test_an_estimate_says_why_the_first_run_failed(small_config, tmp_path):
    with pytest.raises(dpo.HelperError, match="このモデルの上限 256 以下"):
        dpo.estimate_time(small_config(max_length=512), [{}], folder=tmp_path)


def best_of(config, table, path):
    best, text = dpo.best_config(config, [table], path)
    assert dpo.load_config(path) == best
    return best, text


def test_the_best_setting_is_saved_with_its_interval_and_a_warning(swept, small_config, tmp_path):
    config, _, table, *_ = swept
    made = table.assign(accuracy_after=[0.5, 0.6, 0.7, 0.6, 0.6, 0.6])
    best, text = best_of(config, made, tmp_path / "new" / "best.json")
    assert (best.beta, best.learning_rate) == (0.1, 2e-5) and best.lora_alpha == config.lora_alpha
    assert "learning_rate=2e-05, beta=0.1" in text and "70.0%" in text and "区間が重なっている" in text
    again = dpo.parse_config(["--config", str(tmp_path / "new" / "best.json"), "--beta", "0.3"])
    assert again == replace(best, beta=0.3)
    _, text = best_of(config, made.assign(eval_pairs=10000), tmp_path / "best.json")
    assert "区間が重なっている" not in text
    _, text = best_of(config, table.assign(accuracy_after=0.9, chrf=[1, 1, 1, 9, 1, 1]), tmp_path / "best.json")
    assert "初めの設定です" in text and "言い切れません" not in text


def test_the_best_setting_is_chosen_by_the_mean_over_as_many_seeds(swept, tmp_path):
    config, folder, *_ = swept
    table = dpo.sweep(config, {"beta": [0.1, 0.5, 0.9]}, [42, 1], folder, "seeds", report=lambda text: None)
    best, text = best_of(config, table.assign(accuracy_after=[0.9, 0.5, 0.6, 0.6, 0.8, 0.7]), tmp_path / "best.json")
    assert best.beta == 0.9 and "75.0%" in text
    lonely = table.assign(accuracy_after=[0.5, 0.5, 0.6, 0.6, 0.9, 0.9]).drop(5)
    assert best_of(config, lonely, tmp_path / "best.json")[0].beta == 0.5


def test_settings_that_name_different_fields_stay_apart(swept):
    config, folder, table, *_ = swept
    mixed = dpo.sweep(config, [{}, {"beta": 0.1}, {"learning_rate": 1e-5}], folder=folder, name="mixed")
    assert dpo.sweep_table(mixed)["設定"].tolist() == ["初めの設定", "beta=0.1", "learning_rate=1e-05"]
    pd.testing.assert_frame_equal(dpo.sweep_table(pd.read_csv(folder / "mixed.csv")), dpo.sweep_table(mixed))
    dpo.plot_sweep(mixed)


def test_a_table_of_failures_says_the_first_reason(small_config, tmp_path):
    table = dpo.sweep(small_config(), {"max_length": [512, 1024]}, folder=tmp_path, report=lambda text: None)
    for use in (dpo.plot_sweep, dpo.sweep_table):
        with pytest.raises(dpo.HelperError, match="max_length が 512"):
            use(table)


def test_runs_with_spoiled_data_or_other_data_are_not_candidates_for_the_best(small_config, tmp_path):
    grid = [{}, {"label_noise": 0.4}, {"train_share": 0.5}, {"num_pairs": 80}]
    config = small_config(sft_epochs=0.0)
    table = dpo.sweep(config, grid, folder=tmp_path, report=lambda text: None)
    best, text = best_of(config, table.assign(accuracy_after=[0.5, 0.9, 0.9, 0.9]), tmp_path / "best.json")
    assert best == replace(config.resolved(), output_dir="dpo_output") and "50.0%" in text
    with pytest.raises(dpo.HelperError, match="初めの設定の実行が表にありません"):
        dpo.best_config(replace(config, beta=0.7), [table], tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()


@pytest.mark.parametrize("text, word", [
    (None, "読めません"), ("{", "読めません"), ("[1]", "list"), ('{"betta": 1}', "betta"),
    ('{"beta": "0.1"}', "beta が"),
])  # fmt: skip
def test_a_settings_file_that_cannot_be_used_is_refused(text, word, tmp_path):
    path = tmp_path / "best.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(dpo.HelperError, match=word):
        dpo.load_config(path)


def test_answers_of_two_runs_stand_side_by_side(swept, small_config, tmp_path):
    *_, table, _, _ = swept
    rows = dpo.compare_answers(table["folder"][0], table["folder"][5], 4)
    assert list(rows) == ["prompt", "chosen", "dpo_left", "dpo_right"] and len(rows) == 4
    left = dpo.load_run(table["folder"][0]).answers.set_index("prompt")["dpo"]
    assert all(left[prompt] == answer for prompt, answer in zip(rows["prompt"], rows["dpo_left"], strict=True))
    closeness = [dpo.chrf(a, b) for a, b in zip(rows["dpo_left"], rows["dpo_right"], strict=True)]
    assert closeness == sorted(closeness)
    with pytest.raises(dpo.HelperError, match="answers.jsonl"):
        dpo.compare_answers(table["folder"][0], tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    row = {"prompt": "質問: ほかの質問\n回答:", "chosen": "a", "dpo": "b"}
    (other / "answers.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(dpo.HelperError, match="同じ検証用の質問がありません"):
        dpo.compare_answers(table["folder"][0], other)


def test_a_readable_table_has_the_mean_over_seeds(swept):
    *_, table, _, _ = swept
    one = table[table["learning_rate"] == 5e-6].drop(columns="learning_rate")
    readable = dpo.sweep_table(pd.concat([one, one.assign(seed=1, final_loss=one["final_loss"] + 1)]))
    assert readable["設定"].tolist() == ["beta=0.1", "beta=0.5"] and readable["種の数"].tolist() == [2, 2]
    assert readable["最後の損失"][0] == f"{one['final_loss'].iloc[0] + 0.5:.3f}"


def test_figures_mark_the_best_and_name_every_setting(swept, tmp_path):
    *_, table, _, _ = swept
    curves, heat_map, quality, *_ = dpo.plot_sweep(table).axes
    labels = [text.get_text() for text in curves.get_legend().get_texts()]
    assert "beta=0.1, learning_rate=5e-06" in labels and len(labels) == 6
    assert any("★" in text.get_text() for text in heat_map.texts) and len(heat_map.texts) == 6
    one = table[table["learning_rate"] == 5e-6].drop(columns="learning_rate")
    seeds = pd.concat([one, one.assign(seed=1, accuracy_after=one["accuracy_after"] / 2)])
    curves, means, quality = dpo.plot_sweep(seeds).axes
    assert "seeds" in means.get_xlabel()
    assert [text.get_text() for text in means.get_yticklabels()] == ["beta=0.1", "beta=0.5"]
    drawn = [line for line in curves.lines if line.get_marker() in dpo.MARKERS]
    assert [(line.get_color(), line.get_marker()) for line in drawn] == [
        (line.get_color(), line.get_marker()) for line in quality.lines if line.get_marker() in dpo.MARKERS
    ]
    assert sum("★" in text.get_text() for text in means.texts) >= 1
    dpo.plot_sweep(table.head(1).drop(columns=["beta", "learning_rate"])).savefig(tmp_path / "one.png")


def test_a_tracker_that_is_not_there_is_refused_before_training(small_config):
    config = small_config(report_to="wandb2")
    with pytest.raises(dpo.HelperError, match="wandb2.*none.*pip install"):
        dpo.train(config)
    assert not dpo.Path(config.output_dir).exists()


def test_tensorboard_gets_the_rows_of_the_dpo_log(small_config):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = dpo.train(small_config(report_to="tensorboard"))
    (events,) = run.folder.glob("checkpoints/**/events.out.tfevents*")
    log = EventAccumulator(str(events.parent)).Reload()
    losses = [event.value for event in log.Scalars("train/loss")]
    assert losses == pytest.approx([row["loss"] for row in run.history], abs=1e-5)


MANY = """
import pathlib, re, sys
sys.path.insert(0, {root!r})
import dpo_helpers as dpo
process = pathlib.Path("/proc/self")
def peak(text):
    print(re.search(r"VmHWM:\\s+(\\d+)", (process / "status").read_text())[1], end=" ")
    (process / "clear_refs").write_text("5")  # メモリの最大値を測り直す
config = dpo.Config(**{config!r})
dpo.sweep(config, [{{}}], folder={folder!r}, report=peak)  # ライブラリを読み込むまでの分は、比べない
dpo.sweep(config, {{"beta": [0.1 + 0.01 * i for i in range(30)]}}, folder={folder!r}, report=peak)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="メモリの最大値を /proc で測ります")
def test_the_thirtieth_run_needs_no_more_memory_than_the_first(small_config, tmp_path):
    code = MANY.format(root=str(ROOT), config=asdict(small_config()), folder=str(tmp_path))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    peaks = [int(value) for value in done.stdout.split()]
    assert len(peaks) == 31
    first, last = sum(peaks[1:6]) / 5, sum(peaks[-5:]) / 5  # 一回ごとの値は、数 % 揺れる
    assert last < 1.05 * first, peaks
