"""実験ノートブックが最後まで動き、本文の数と文が、保存した結果のとおりであることを確かめます。"""

import json
import re
import shutil

import nbformat
import pandas as pd
import pytest
from conftest import ROOT, run_experiment
from measure_studies import NOTEBOOK, read_studies, study_table
from test_notebooks import check_outputs

import dpo_helpers as dpo

CELLS = {cell.metadata.id: cell.source for cell in nbformat.read(ROOT / NOTEBOOK, as_version=4).cells}
SAVED = "**保存した結果**（`offline-tiny`、1,000 対、種三つの平均）"
STUDIES = [name for name, source in CELLS.items() if source == f'study("{name}")']


def test_every_study_has_a_title_an_explanation_a_cell_and_a_result():
    assert len(STUDIES) == 9
    for number, name in enumerate(STUDIES, 4):
        assert CELLS[f"{name}-text"].startswith(f"## {number}. ")
        assert f"{name}-result" in CELLS and f'"{name}":' in CELLS["studies"]


@pytest.mark.parametrize("name", STUDIES)
def test_tables_in_the_text_come_from_the_saved_runs(name):
    results = read_studies()[name]
    assert results["error"].isna().all()
    assert CELLS[f"{name}-result"].startswith(f"{SAVED}\n\n{study_table(results)}\n")


def test_the_time_in_the_text_comes_from_a_saved_run():
    seconds = json.loads((ROOT / "tests" / "results" / "notebooks.json").read_text("utf-8"))["seconds"][NOTEBOOK]
    time = f"2 コアの CPU で {seconds / 60:.0f} 分"
    assert f"{time}かかりました" in CELLS["title"] and f"| {time} |" in CELLS["settings-text"]


def means(name):
    """実験の設定ごとの、種の平均です。"""
    return pd.DataFrame([rows.mean(numeric_only=True) for _, rows in dpo._groups(read_studies()[name])])


def overlap(table):
    """すべての設定の、検証の正解率の 95 % 区間が重なっているかどうかです。"""
    n = table["eval_pairs"]
    ends = [dpo.wilson_interval(a * m, m) for a, m in zip(table["accuracy_after"], n, strict=True)]
    return max(low for low, _ in ends) < min(high for _, high in ends)


def chrf_of(name, row):
    return f"{means(name)['chrf'][row]:.1f}"


def moved():
    """β の実験の、マージンを β で割った値です。"""
    table = means("beta")
    return "、".join(f"{value:.1f}" for value in table["margin_after"] / table["beta"])


def mirrors():
    """見本のファイルの検証用の対のうち、chosen と rejected を入れ替えた相方が学習用にあるものの数です。"""
    columns = ["prompt", "chosen", "rejected"]
    train, held_out = dpo.split_pairs(dpo.load_pairs(dpo.build_pairs(1000).select_columns(columns).to_list()))
    seen = set(zip(train["chosen"], train["rejected"], strict=True))
    return sum((bad, good) in seen for good, bad in zip(held_out["chosen"], held_out["rejected"], strict=True))


def is_growing(values):
    return all(a < b for a, b in zip(values, values[1:], strict=False))


def test_what_the_text_says_of_learning_rate_and_scale_is_true():
    table = means("scale")
    usual, faster, *equal = table["final_loss"]
    assert usual > 0.98 * 0.693 and table["margin_after"][0] < 0.05 and table["accuracy_after"][0] > 0.9
    assert max(faster, *equal) < 0.3
    scaled = table["learning_rate"] * table["lora_alpha"]
    assert scaled[1] == pytest.approx(scaled[3] / 5)
    first, last = (table.iloc[i] for i in (2, 3))
    assert first["learning_rate"] == pytest.approx(500 * last["learning_rate"])
    assert first["learning_rate"] * first["lora_alpha"] == pytest.approx(last["learning_rate"] * last["lora_alpha"])


def test_what_the_text_says_of_beta_is_true():
    table = means("beta")
    assert is_growing(-table["final_loss"].to_numpy()) and is_growing(table["margin_after"].to_numpy())
    assert overlap(table) and f"割ると {moved()} で" in CELLS["beta-result"]


def test_what_the_text_says_of_loss_types_is_true():
    table = means("loss")
    for column in ("accuracy_after", "chrf"):
        assert table[column][1:].max() < table[column][0]
    labels = [label for label, _ in dpo._groups(read_studies()["loss"])]
    assert all(overlap(table.iloc[[0, i]]) for i in (1, 3, 4)) and table["final_loss"][5] < 0
    assert f"chrF は {chrf_of('loss', 0)} から {chrf_of('loss', 1)} に下がりました" in CELLS["loss-result"]
    half = table["chrf"][0] / 2
    broken = {label.partition(",")[0] for label, chrf in zip(labels, table["chrf"], strict=True) if chrf < half}
    assert broken == {"loss_type=ipo", "loss_type=robust"}


def test_what_the_text_says_of_rank_is_true():
    table = means("rank")
    assert table["lora_r"].tolist() == [8, 32, 128] and overlap(table)
    assert is_growing(-table["final_loss"].to_numpy()) and table["chrf"].max() - table["chrf"].min() < 2


def test_what_the_text_says_of_the_number_of_pairs_is_true():
    table = means("pairs")
    assert is_growing(-table["final_loss"].to_numpy()) and is_growing(table["margin_after"].to_numpy())
    assert is_growing(table["accuracy_after"].to_numpy()) and overlap(table)
    assert is_growing(-table["chrf"].to_numpy())


def test_what_the_text_says_of_label_noise_is_true():
    table = means("noise")
    assert is_growing([-table["accuracy_after"][i:j].max() for i, j in ((0, 1), (1, 3), (3, 5))])
    low, _ = dpo.wilson_interval(table["accuracy_after"].min() * 150, 150)
    assert low > 0.5 and overlap(table[1:3]) and overlap(table[3:5])


def test_what_the_text_says_of_the_warm_up_is_true():
    table = means("warmup")
    assert is_growing(-table["accuracy_after"].to_numpy()) and overlap(table)
    assert f"chrF は {chrf_of('warmup', 0)} から {chrf_of('warmup', 1)} に下がりました" in CELLS["warmup-result"]
    assert is_growing(-table["chrf"].to_numpy())


def test_what_the_text_says_of_epochs_is_true():
    table = means("epochs")
    assert table["final_loss"][2] < table["final_loss"][0] / 3 and table["accuracy_train"][2] > 0.995
    assert overlap(table) and is_growing(-table["chrf"].to_numpy())


def test_what_the_text_says_of_the_sample_file_is_true():
    assert overlap(means("own")) and f"150 対のうち {mirrors()} 対で" in CELLS["own-result"]


def test_the_memory_of_the_listed_models_is_four_bytes_a_parameter():
    rows = re.findall(r"\| ([\d.]+) 億 \| .* \| ([\d.]+) GB \|", CELLS["model-text"])
    assert len(rows) >= 5
    assert all(float(gigabytes) == pytest.approx(4 * float(size) / 10, abs=0.05) for size, gigabytes in rows)


@pytest.mark.slow
def test_it_runs_with_a_figure_for_each_study(experiment):
    executed, small_base, _ = experiment
    done = nbformat.read(executed / "out.ipynb", as_version=4)
    text = check_outputs(done)
    for name in (*STUDIES, "model"):
        (cell,) = (cell for cell in done.cells if cell.metadata.get("id") == name)
        assert sum("image/png" in output.get("data", {}) for output in cell.outputs) == 1
        assert pd.read_csv(executed / "experiments" / f"{name}.csv")["error"].isna().all()
        assert (executed / "experiment_results_quick" / f"{name}.png").is_file()
    assert "最もよかった" in text and "experiment_results_quick.zip にまとめました" in text
    assert dpo.load_config(executed / "experiment_results_quick" / "best_config.json").base_model == str(small_base)
    rows = pd.read_csv(executed / "experiment_results_quick" / "all_runs.csv")
    runs, minutes = re.search(r"このあとの実行は (\d+) 回で、約 ([\d.]+) 分", text).groups()
    assert int(runs) == rows["folder"].nunique() - 1
    spent = rows.drop_duplicates("folder")["total_seconds"].sum() / 60
    assert spent / 3 < float(minutes) < 3 * spent


@pytest.mark.slow
def test_run_again_it_trains_nothing_and_shows_the_same(experiment, tmp_path):
    executed, *models = experiment
    shutil.copytree(executed, tmp_path / "again")
    files = sorted((tmp_path / "again" / "experiments").glob("*/metrics.json"))
    times = [path.stat().st_mtime_ns for path in files]
    done = run_experiment(tmp_path / "again", *models)
    assert "このあとの実行は 0 回" in check_outputs(nbformat.from_dict(done))
    assert [path.stat().st_mtime_ns for path in files] == times
