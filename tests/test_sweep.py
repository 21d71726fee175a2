"""設定を変えた実行を並べる sweep と、その図を確かめます。"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from conftest import arguments, finish

import dpo_helpers as dpo

GRID = {"beta": [0.1, 0.5], "learning_rate": [5e-6, 2e-5]}
SFT, LOG = "sft/adapter_model.safetensors", "sft/history.jsonl"


@pytest.fixture(scope="module")
def swept(small_config, tmp_path_factory):
    """4 回の sweep の、(設定, フォルダ, 表, 表示した文) です。"""
    config, folder, said = small_config(), tmp_path_factory.mktemp("sweep"), []
    return config, folder, dpo.sweep(config, GRID, folder=folder, report=said.append), said


def contents(folders):
    """実行のフォルダの、ファイルごとの更新時刻です。"""
    paths = [path for folder in folders for path in dpo.Path(folder).rglob("*")]
    return {path: path.stat().st_mtime_ns for path in paths if path.is_file()}


def test_every_combination_has_its_row_and_the_table_is_saved(swept):
    _, folder, table, said = swept
    assert table[["beta", "learning_rate"]].to_numpy().tolist() == [[b, r] for b in (0.1, 0.5) for r in (5e-6, 2e-5)]
    assert table["error"].isna().all() and table["accuracy_after"].between(0, 1).all()
    saved = pd.read_csv(folder / "results.csv")
    pd.testing.assert_frame_equal(saved.drop(columns="error"), table.drop(columns="error"), check_dtype=False)
    assert len(said) == 4 and said[0].startswith("1/4 beta=0.1, learning_rate=5e-06、シード 42: 検証の正解率 ")


def test_a_row_equals_a_single_run_and_the_sft_is_trained_once(swept, small_config):
    """DPO の設定だけが違う四つは、SFT のあとのアダプタを共有します。結果は、一つだけ実行したときと同じです。"""
    table = swept[2]
    assert len({(dpo.Path(folder) / LOG).read_bytes() for folder in table["folder"]}) == 1  # 秒数まで同じ
    single = dpo.train(small_config(beta=0.5, learning_rate=2e-5))
    metrics = dpo.evaluate_run(single)
    for name in ("final_loss", "eval_loss", "accuracy_after", "margin_after", "drift"):
        assert table[name][3] == pytest.approx(metrics[name], abs=1e-6)
    assert table["verdict"][3] == metrics["verdict"] and table["chrf"][3] == metrics["answers"]["dpo"]["chrf"]


def test_sft_is_not_shared_when_the_file_has_other_pairs(small_config, tmp_path):
    """名前が同じでも中身の違うデータの SFT は、使い回しません。"""
    pairs, tables = dpo.build_pairs(80, seed=1).to_pandas()[["prompt", "chosen", "rejected"]], []
    for rows in (pairs[:40], pairs[40:]):
        rows.to_csv(tmp_path / "own.csv", index=False)
        config = small_config(dataset=str(tmp_path / "own.csv"))
        tables.append(dpo.sweep(config, [{}], folder=tmp_path / "sweep", report=str))
    first, second = (dpo.Path(table["folder"][0]) / SFT for table in tables)
    assert first.parent != second.parent and first.read_bytes() != second.read_bytes()


def test_the_base_model_made_here_is_shared(small_base, small_config, tmp_path):
    config = small_config(base_model="offline-tiny", sft_epochs=0.0, output_dir="dpo_output")
    pairs = dpo.prepare_pairs(config)
    first = dpo.replace(config, beta=0.1, output_dir=dpo.run_folder(dpo.replace(config, beta=0.1), pairs, tmp_path))
    dpo.claim_folder(first.resolved(), pairs)
    shutil.copytree(small_base, first.folder / "base")  # 1 分かかる元のモデルの代わりに、小さなものを置く
    table = dpo.sweep(config, {"beta": [0.1, 0.5]}, folder=tmp_path, report=str)
    assert table["error"].isna().all() and table["folder"][0] == first.output_dir
    weights = [(dpo.Path(folder) / "base" / "model.safetensors").read_bytes() for folder in table["folder"]]
    assert weights[0] == weights[1] == (small_base / "model.safetensors").read_bytes()


def test_it_goes_on_where_it_was_and_other_tables_use_the_same_runs(small_config, tmp_path):
    config = small_config(sft_epochs=0.0)
    first = dpo.sweep(config, {"beta": [0.5]}, folder=tmp_path, report=str)
    before = contents(first["folder"])
    longer = dpo.sweep(config, {"beta": [0.1, 0.5]}, [42, 1], tmp_path, "seeds", report=str)
    assert contents(first["folder"]) == before and longer["folder"][2] == first["folder"][0]
    assert longer["seed"].tolist() == [42, 1] * 2 and longer["final_loss"].nunique() == 4
    assert len(pd.read_csv(tmp_path / "results.csv")) == 1 and len(pd.read_csv(tmp_path / "seeds.csv")) == 4


def test_a_failed_run_keeps_its_reason_and_the_rest_goes_on(small_config, tmp_path):
    grid = [{"beta": 0.1}, {"max_length": 512}, {"loss_type": "ipo"}]
    table = dpo.sweep(small_config(sft_epochs=0.0), grid, folder=tmp_path, report=str)
    assert table["error"].isna().tolist() == [True, False, True] and "max_length が 512" in table["error"][1]
    assert list(dpo.setting_groups(table)) == ["beta=0.1", "loss_type=ipo"]
    failed = table[1:2].reset_index(drop=True)
    with pytest.raises(dpo.HelperError, match="max_length が 512"):
        dpo.plot_sweep(failed)


@pytest.mark.parametrize(("grid", "word"), [
    ({"betta": [0.1]}, "betta"), ({"beta": [0.1, -1.0]}, "beta が -1.0"), ({"seed": [1]}, "シードは seeds"),
    ([{}, {"output_dir": "a"}], "置き場は folder"), ({"beta": "0.1"}, "beta が '0.1'"),
])  # fmt: skip
def test_a_mistaken_grid_is_refused_before_the_first_run(grid, word, small_config, tmp_path):
    with pytest.raises(dpo.HelperError, match=word):
        dpo.sweep(small_config(), grid, folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_finished_runs_come_back_from_drive_and_a_damaged_copy_is_made_again(small_config, tmp_path):
    config, drive, here = small_config(sft_epochs=0.0), tmp_path / "drive", tmp_path / "here"
    drive.mkdir()
    table = dpo.sweep(config, [{}], folder=here, report=str, drive=drive)
    there = drive / "here" / dpo.Path(table["folder"][0]).name
    kept = contents([there])
    shutil.rmtree(here)
    pd.testing.assert_frame_equal(dpo.sweep(config, [{}], folder=here, report=str, drive=drive), table)
    run = dpo.load_run(table["folder"][0])
    assert contents([there]) == kept
    assert dpo.score_pairs(run, run.eval_pairs)["margin"].mean() == pytest.approx(table["margin_after"][0], abs=1e-5)
    (there / "adapter" / "adapter_model.safetensors").write_bytes(b"")
    dpo.sweep(config, [{}], folder=here, report=str, drive=drive)
    assert dpo.is_done(there) and dpo.load_run(there)


def test_drive_that_went_away_does_not_stop_the_sweep(small_config, tmp_path):
    said = []
    away = tmp_path / "drive"
    table = dpo.sweep(small_config(), {"beta": 0.1}, folder=tmp_path / "s", report=said.append, drive=away)
    assert table["error"].isna().all() and table["beta"][0] == 0.1 and not away.exists()
    assert any("Google Drive に保存できませんでした" in text for text in said)


def test_records_sent_to_tensorboard_stay_in_the_folder(small_config, tmp_path):
    config = small_config(sft_epochs=0.0, report_to="tensorboard")
    (tmp_path / "drive").mkdir()
    (folder,) = dpo.sweep(config, [{}], folder=tmp_path / "a", report=str, drive=tmp_path / "drive")["folder"]
    for kept in (Path(folder), tmp_path / "drive" / "a" / Path(folder).name):
        assert list(kept.glob("tensorboard/events.out.tfevents*"))


def drawn(axis, marker):
    """marker の印で描いた点の、(横, 縦) です。"""
    return [line.get_xydata()[0].tolist() for line in axis.lines if line.get_marker() == marker]


def test_the_figure_shows_the_values_of_the_table(swept):
    one = swept[2][["beta", *swept[2].columns.drop(["beta", "learning_rate"])]].iloc[[0, 2]]
    curve, accuracy, answers = dpo.plot_sweep(one).axes
    assert [label.get_text() for label in accuracy.get_yticklabels()] == ["beta=0.1", "beta=0.5"]
    assert curve.get_ylabel() == "loss/preference" and "sampled" in answers.get_title()
    history = pd.read_json(f"{one['folder'].iloc[1]}/history.jsonl", lines=True)["loss/preference"]
    assert curve.lines[1].get_ydata()[-1] == pytest.approx(history[-(len(history) // 8) :].mean())
    for i, (_, row) in enumerate(one.iterrows()):
        assert drawn(accuracy, "os"[i]) == [[row["accuracy_after"], i]]
        metrics = json.loads(Path(row["folder"], "metrics.json").read_text("utf-8"))
        assert list(accuracy.lines[3 * i].get_xdata()) == pytest.approx(metrics["accuracy_interval"])
        widths = [bars[i].get_width() for bars in answers.containers]
        assert widths == pytest.approx([row[name] for name in dpo.KIND_GROUPS], abs=1e-6)
        assert sum(widths) == pytest.approx(1)  # near_chosen、garbled、flawed で、すべて
    assert drawn(accuracy, "|") == [[value, i] for i, value in enumerate(one["accuracy_train"])]


def test_differences_between_runs_are_paired_by_pair_and_by_seed(swept, small_config, tmp_path):
    """差は、それぞれの成績の差と同じで、同じ実行どうしなら、幅のない 0 です。検証のデータが違えば、比べません。"""
    _, folder, table, _ = swept
    found = dpo.compare_runs(table["folder"][2:], table["folder"][:2])
    assert set(found) == {"eval_loss", "accuracy_after", "chrf", *dpo.KIND_GROUPS}
    for name, (gain, low, high) in found.items():
        assert gain == pytest.approx(table[name][2:].mean() - table[name][:2].mean(), abs=1e-6) and low <= gain <= high
    same = dpo.compare_runs(table["folder"][:1], table["folder"][:1])
    assert all(values == [0, 0, 0] for values in same.values())
    other = dpo.sweep(small_config(num_pairs=100, sft_epochs=0.0), [{}], folder=tmp_path, report=str)
    assert dpo.compare_runs(other["folder"], table["folder"][:1]) == {}
    dpo.build_pairs(40).select_columns(["prompt", "chosen", "rejected"]).to_csv(tmp_path / "own.csv")  # 概念の列がない
    own = dpo.sweep(small_config(dataset=str(tmp_path / "own.csv"), sft_epochs=0.0), [{}], folder=tmp_path, report=str)
    assert own["flawed"].isna().all()
    kept = (dpo.Path(own["folder"][0]) / "metrics.json").read_text("utf-8")
    assert "change_interval" not in kept and "garbled" not in kept and "NaN" not in kept  # 測っていない数は、書かない
    assert set(dpo.compare_runs(own["folder"], own["folder"])) == {"eval_loss", "accuracy_after", "chrf"}


def test_the_control_shares_the_sft_and_its_difference_stays_with_the_run(small_config, capsys):
    """`--control` は、対照を隣のフォルダに学習し、差の文を見せて、metrics.json に残します。"""
    config = small_config(control=True)
    assert dpo.main(arguments(config)) == 0
    shown, run = capsys.readouterr().out, dpo.load_run(config.folder)
    control = dpo.load_run(f"{config.output_dir}_control")
    assert control.config.preference_weight == 0
    assert (config.folder / LOG).read_bytes() == (control.config.folder / LOG).read_bytes()  # SFT は、秒数まで同じ
    assert [len(each.history) for each in (run, control)] == [len(run.history)] * 2
    assert run.metrics["answers"]["control"] == control.metrics["answers"]["dpo"]
    assert run.metrics["answers"]["sampled"]["control"] == control.metrics["answers"]["sampled"]["dpo"]
    difference, kept = dpo.compare_runs([config.folder], [control.config.folder]), run.metrics["control_difference"]
    for name, (gain, *interval) in difference.items():
        assert (kept[name], kept[f"{name}_interval"]) == (gain, interval)
        assert f"「{dpo.COLUMN_NAMES[name]}」の差（DPO あり − なし）: {gain:+.3f}" in shown
    assert {"flawed", "near_chosen_interval"} <= set(kept)
    pairs = dpo.prepare_pairs(config)
    assert dpo.is_finished(replace(config, control=False), pairs)
    shutil.rmtree(config.folder)  # 別の設定でやり直しても、前の設定の対照とは比べない
    again = finish(replace(config, beta=0.1))
    with pytest.raises(dpo.HelperError, match="設定かデータの違う実行"):
        dpo.add_control(again, pairs)


def test_neighbours_that_are_not_ours_do_not_stop_a_sweep(small_config, tmp_path):
    for name, text in (("bare", None), ("other", '{"unknown": 1}'), ("list", "[]"), ("ours", '{"beta": 0.5}')):
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.json").write_text("{}")
        if text:
            (tmp_path / name / "config.json").write_text(text)
    assert dpo.sweep(small_config(sft_epochs=0.0), [{}], folder=tmp_path, report=str)["error"].isna().all()


def write_run(folder, kinds):
    """検証の成績だけの、実行のフォルダです。kinds は、概念 A と B の二問ずつの、引いた回答の種類です。"""
    folder.mkdir()
    pairs = [{"split": "eval", "margin": 1.0, "correct": True, "group": group} for group in "AABB"]
    answers = [{"sample": i, "dpo_kind": kind, "dpo_chrf": 50.0, "group": group}
               for i in (0, 1) for kind, group in zip(kinds, "AABB", strict=True)]  # fmt: skip
    for name, rows in (("pairs", pairs), ("answers", answers)):
        pd.DataFrame(rows).to_json(folder / f"{name}.jsonl", orient="records", lines=True)
    return folder


def test_the_kinds_of_answers_are_compared_one_by_one(tmp_path):
    """概念ごとの差がそろっていれば区間に幅がなく、そろわなければ、概念ごとの差が両端になります。"""
    left = write_run(tmp_path / "left", ["near_chosen", "garbled", "near_chosen", "garbled"])
    right = write_run(tmp_path / "right", ["vague", "garbled", "rude", "near_chosen"])
    found = dpo.compare_runs([left], [right])
    assert found["flawed"] == [-0.5, -0.5, -0.5] and found["eval_loss"] == found["chrf"] == [0, 0, 0]
    assert found["garbled"] == [0.25, 0.0, 0.5] and found["near_chosen"] == [0.25, 0.0, 0.5]


def test_the_figure_shows_the_mean_over_seeds_and_accuracy_for_other_losses(swept):
    seeds = swept[2][:2].drop(columns=["beta", "learning_rate"]).assign(seed=[42, 1])  # 学習率の違いを、シードの違いに
    losses = pd.concat([seeds.assign(loss_type="sigmoid"), seeds.assign(loss_type="ipo")])
    curve, accuracy, answers = dpo.plot_sweep(losses[["loss_type", *seeds.columns]]).axes
    assert curve.get_ylabel() == "rewards/accuracies"
    assert drawn(accuracy, "o")[0] == [pytest.approx(seeds["accuracy_after"].mean()), 0]
    assert answers.containers[2][0].get_width() == pytest.approx(seeds["flawed"].mean())
    assert [label.get_text() for label in dpo.plot_sweep(seeds).axes[1].get_yticklabels()] == ["baseline"]


def test_the_figure_of_own_data_has_an_interval_even_when_all_are_right(tmp_path):
    """知識表にない概念では、種類の代わりに、よい回答に近い割合だけの棒になります。"""
    folder = write_run(tmp_path / "own", [None] * 4)
    (folder / "history.jsonl").write_text('{"step": 1, "loss/preference": 0.7}\n', "utf-8")
    row = {"seed": 42, "error": None, "folder": str(folder), "accuracy_train": 1.0, "near_chosen": 0.25, "flawed": None}
    _, accuracy, answers = dpo.plot_sweep(pd.DataFrame([row])).axes
    assert list(accuracy.lines[0].get_xdata()) == pytest.approx([2 / (2 + 1.96**2), 1])  # 概念が二つのときの Wilson
    assert [bars[0].get_width() for bars in answers.containers] == [0.25, 0, 0]
