"""実験ノートブックが最後まで動き、本文の数と文が、保存した結果のとおりであることを確かめます。"""

import dis
import json
import re
import shutil
import types
from collections import Counter
from dataclasses import replace
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from conftest import EXPERIMENT, NIGHTLY, ROOT, run_experiment
from IPython.core.inputtransformer2 import TransformerManager
from measure.studies import RESULTS, read_gains, read_levels, read_studies, study_table
from test_notebooks import check_outputs

import dpo_helpers as dpo

NOTEBOOK = nbformat.read(ROOT / EXPERIMENT, as_version=4)
CELLS = {cell.metadata.id: cell.source for cell in NOTEBOOK.cells}
STUDIES = [name for name, source in CELLS.items() if source == f'study("{name}")']


def run_cell(name, **values):
    """セルを、values だけがある所で実行したあとの変数です。"""
    exec(CELLS[name], values := {"dpo": dpo, "pd": pd, "Path": Path} | values)
    return types.SimpleNamespace(**values)


def test_every_study_has_a_title_a_cell_and_the_saved_table():
    assert len(STUDIES) == 8 and set(read_studies()) == set(STUDIES)
    for number, name in enumerate(STUDIES, 4):
        results = read_studies()[name]
        assert CELLS[f"{name}-text"].startswith(f"## {number}. ") and results["error"].isna().all()
        assert results.groupby("seed").size().tolist() == [len(dpo.setting_groups(results))] * 3
        assert f"\n\n{study_table(name)}\n\n" in CELLS[f"{name}-result"]


def test_the_tables_were_measured_on_the_pairs_of_today():
    measured = json.loads(RESULTS.read_text("utf-8"))["pairs"]
    assert measured == dpo.data_digest(dpo.Config(), dpo.build_pairs())
    assert dpo.say("tiny_read").replace("`offline-tiny` は、", "") in CELLS["title"]  # 元のモデルが読んだもの


def test_no_name_is_given_a_second_value_in_another_cell():
    """どのセルを実行し直しても、ほかのセルが使う変数は変わりません。"""
    stored = []
    for source in (cell.source for cell in NOTEBOOK.cells if cell.cell_type == "code"):
        code = compile(TransformerManager().transform_cell(source), "cell", "exec")
        stored += {step.argval for step in dis.get_instructions(code) if step.opname == "STORE_NAME"}
    assert "config" in stored and len(stored) == len(set(stored))


def test_numbers_outside_the_tables_come_from_saved_results_and_arithmetic():
    seconds = json.loads((ROOT / "tests" / "results" / "notebooks.json").read_text("utf-8"))["seconds"][EXPERIMENT]
    assert f"2 コアの CPU で {seconds / 60:.0f} 分" in CELLS["title"]
    assert '"quick": ("offline-tiny", 200, [42])' in CELLS["config"] and "`quick` は 200 ペア" in CELLS["title"]
    _, quick = dpo.split_pairs(dpo.build_pairs(200))
    assert f"検証は {len({*quick['concept']})} 概念の {len(quick)} ペア" in CELLS["title"]
    assert f"「測定」では {len({*dpo.split_pairs(dpo.build_pairs())[1]['concept']})} 概念" in CELLS["study-text"]
    sizes = re.findall(r"\| ([\d.]+) 億 \| ([\d.]+) GB \|", CELLS["model-text"])
    assert len(sizes) >= 3 and all(float(memory) == pytest.approx(0.4 * float(size)) for size, memory in sizes)
    columns = ["prompt", "chosen", "rejected"]
    train, held_out = dpo.split_pairs(dpo.load_pairs(dpo.build_pairs(1000).select_columns(columns).to_list()))
    swapped = set(zip(train["rejected"], train["chosen"], strict=True))
    mirrors = sum(answers in swapped for answers in zip(held_out["chosen"], held_out["rejected"], strict=True))
    assert f"150 ペアのうち {mirrors} ペアの、" in CELLS["own-result"]


def means(name):
    """実験の設定ごとの、シードの平均です。"""
    return pd.DataFrame([rows.mean(numeric_only=True) for rows in dpo.setting_groups(read_studies()[name]).values()])


def test_the_files_of_the_studies_change_only_what_the_text_says(tmp_path, monkeypatch):
    """検証用のペアはどのファイルでも同じで、学習用のペアだけが、減るか、入れ替わります。"""
    monkeypatch.chdir(tmp_path)
    config = dpo.Config(base_model="offline-tiny", num_pairs=200).resolved()
    train, held_out = dpo.split_and_shuffle(dpo.build_pairs(200), config)
    made = run_cell("sample", config=config, own_data="")
    key = ("prompt", "chosen", "rejected")
    good = [[row[name] for name in key] for row in train]
    for path, share, most in zip((*made.few, *made.noisy), (0, 0, 0.2, 0.4), (1, 2, 99, 99), strict=True):
        mine, same = dpo.split_pairs(dpo.load_pairs(path))
        assert [[row[name] for name in key] for row in same] == [[row[name] for name in key] for row in held_out]
        assert max(Counter(mine["concept"]).values()) <= most and set(mine["concept"]) == set(train["concept"])
        rows = [[row[name] for name in key] for row in mine]
        flipped = [row for row in rows if row not in good]
        assert len(flipped) == round(share * len(train)) and all([p, r, c] in good for p, c, r in flipped)


def test_another_model_can_be_given_its_own_values():
    source = CELLS["studies"].replace('"lora_alpha": None}', '"lora_alpha": None, "sft_epochs": 0.0}')
    exec(source, values := {"dpo": dpo, "config": dpo.Config().resolved(), "other_model": "some/model", "few": [],
                            "noisy": [], "own_file": "a.csv"})  # fmt: skip
    (_, other) = values["studies"]["model"]
    assert other["sft_epochs"] == 0.0 and other["lora_r"] is None and other["base_model"] == "some/model"


class Gains:
    """一番上の設定との差（number は、上から何番目の設定か）の区間の、0 との位置を尋ねます。"""

    def __init__(self, name):
        self.rows = [None, *read_gains()[name].values()]

    def up(self, number, *metrics):
        return all(self.rows[number][metric][1] > 0 for metric in metrics)

    def down(self, number, *metrics):
        return all(self.rows[number][metric][2] < 0 for metric in metrics)

    def unclear(self, number, *metrics):
        return all(self.rows[number][metric][1] <= 0 <= self.rows[number][metric][2] for metric in metrics)


def grows(values):
    return values.is_monotonic_increasing and values.is_unique


LOSS, RIGHT, NEAR, FLAWED, GARBLED = "eval_loss", "accuracy_after", "near_chosen", "flawed", "garbled"
KINDS = NEAR, FLAWED, GARBLED
SAID = {"正解率": RIGHT, "よい回答に近い": NEAR, "欠点のある": FLAWED, "どの文とも違う": GARBLED}
CLAIMS = {  # 実験: 本文に書いたこと。t は設定ごとの平均、g は一番上の設定との差、v は設定ごとの判定
    "terms": lambda t, g, v: g.down(1, RIGHT, GARBLED) and g.up(1, FLAWED) and g.unclear(1, NEAR)
    and g.down(2, LOSS, FLAWED, NEAR, RIGHT) and g.up(2, GARBLED)
    and g.unclear(3, NEAR) and g.up(3, FLAWED) and g.down(3, GARBLED),
    "scale": lambda t, g, v: set(v[1]) == {"ほとんど変化していない"} and t[RIGHT][1] > 0.7 and t[FLAWED][1] > 0.7
    and g.down(2, LOSS) and g.unclear(2, RIGHT, *KINDS)
    and t["learning_rate"][2] == pytest.approx(250 * t["learning_rate"][0])
    and t["learning_rate"][2] * t["lora_alpha"][2] == pytest.approx(t["learning_rate"][0] * t["lora_alpha"][0]),
    "beta": lambda t, g, v: g.up(1, LOSS) and g.down(2, LOSS) and g.down(1, GARBLED) and g.unclear(2, GARBLED)
    and t["margin_after"][1] < t["margin_after"][0] < t["margin_after"][2]
    and all(g.unclear(i, RIGHT, NEAR, FLAWED) for i in (1, 2))
    and "、".join(f"{value:.1f}" for value in t["margin_after"] / t["beta"]) in CELLS["beta-result"],
    "loss": lambda t, g, v: g.unclear(1, RIGHT, *KINDS) and g.up(1, LOSS),
    "pairs": lambda t, g, v: all(g.up(i, LOSS, FLAWED) and g.down(i, RIGHT, NEAR, GARBLED) for i in (1, 2))
    and all(grows(t[name][[0, 2, 1]]) for name in (LOSS, FLAWED))
    and all(grows(t[name][[1, 2, 0]]) for name in (RIGHT, NEAR, GARBLED))
    and [round(t["train_pairs"][0] / t["train_pairs"][i]) for i in (1, 2)] == [8, 4],
    "noise": lambda t, g, v: grows(-t[RIGHT]) and grows(t[FLAWED]) and grows(t[LOSS])
    and all(g.down(i, RIGHT) and g.up(i, FLAWED, LOSS) for i in (1, 2))
    and t["accuracy_train"][2] > 0.8 and t["accuracy_train"][1] > 0.8 and v[2].count("学習した") == 2,
    "epochs": lambda t, g, v: g.down(1, LOSS, NEAR) and g.unclear(1, RIGHT) and g.up(1, GARBLED),
    "own": lambda t, g, v: (t["eval_pairs"] == 150).all() and t[FLAWED].isna().tolist() == [False, True]
    and read_gains()["own"] == {"dataset=sample_pairs.csv": {}},
}  # fmt: skip


@pytest.mark.parametrize("name", STUDIES)
def test_what_the_text_says_is_true_of_the_saved_runs(name):
    table, groups = means(name), dpo.setting_groups(read_studies()[name]).values()
    assert CLAIMS[name](table, Gains(name), [list(rows["verdict"]) for rows in groups])
    said = CELLS[f"{name}-result"].rpartition("|\n\n")[2]  # 表のあとの文
    levels = list(read_levels()[name].values())
    subject = rf"({'|'.join(SAID)})(?:もの|回答)?[はが]"
    for metric, first, second in re.findall(subject + r" ([\d.]+) % から ([\d.]+) % に", said):
        shown = [f"{100 * level[SAID[metric]][0]:.1f}" for level in levels]
        assert first == shown[0] and second in shown[1:]
    for metric, value in re.findall(subject + r" ([\d.]+) % (?:です|もあります)", said):
        assert value in [f"{100 * level[SAID[metric]][0]:.1f}" for level in levels]
    assert "%" not in re.sub(subject + r" [\d.]+ % (から [\d.]+ % に|です|もあります)", "", said)


def best(config, rows, results, seeds=(42,)):
    """(変えた項目, 検証の正解率) の実行があったときに、最もよい設定のセルが書く設定です。"""
    found = []
    for i, (changed, accuracy) in enumerate(rows):
        run = replace(config, **changed, output_dir=str(results / f"run{i}"))
        dpo.claim_folder(run, dpo.build_pairs(20))
        found.append({"folder": run.output_dir, "accuracy_after": accuracy})
    done = run_cell("best", config=config, tables={"a": pd.DataFrame(found)}, results=results, seeds=seeds)
    assert dpo.load_config(results / "best_config.json") == done.best
    return done.best


def test_the_best_setting_is_on_the_same_data_and_the_baseline_wins_ties(tmp_path, capsys):
    base = dpo.Config(base_model="offline-tiny").resolved()
    spoiled = [({"dataset": "study_data/noise_0.4.jsonl"}, 0.9), ({"num_pairs": 500}, 0.9)]
    better = best(base, [({}, 0.6), ({"beta": 0.1}, 0.7), *spoiled], tmp_path)
    assert better == replace(base, beta=0.1) and "beta=0.1（検証の正解率 70.0%）" in capsys.readouterr().out
    assert best(base, [({"beta": 0.1}, 0.7), ({}, 0.7)], tmp_path) == base
    assert "最もよかった設定: ベースライン" in capsys.readouterr().out


def test_the_best_setting_is_chosen_by_the_mean_over_all_seeds(tmp_path):
    base = dpo.Config(base_model="offline-tiny").resolved()
    scores = {0.5: (0.9, 0.5), 0.1: (0.8, 0.7), 0.9: (1.0,)}
    rows = [({"beta": beta, "seed": seed}, score) for beta, pair in scores.items()
            for seed, score in zip((42, 1), pair, strict=False)]  # fmt: skip
    assert best(base, rows, tmp_path, seeds=(42, 1)) == replace(base, beta=0.1)


@NIGHTLY
def test_it_runs_with_a_figure_for_each_study(experiment):
    executed, small_base, _ = experiment
    done, results = nbformat.read(executed / "out.ipynb", as_version=4), executed / "experiment_results_quick"
    text = check_outputs(done)
    for name in (*STUDIES, "model"):
        (cell,) = (cell for cell in done.cells if cell.metadata.get("id") == name)
        assert sum("image/png" in output.get("data", {}) for output in cell.outputs) == 1
        assert pd.read_csv(executed / "experiments" / f"{name}.csv")["error"].isna().all()
        assert (results / f"{name}.png").is_file()
    assert "最もよかった設定: " in text and "experiment_results_quick.zip にまとめました" in text
    assert dpo.load_config(results / "best_config.json").base_model == str(small_base)
    assert len(pd.read_csv(results / "all_runs.csv")) == 24


@NIGHTLY
def test_its_tables_show_the_means_and_the_answers_of_the_runs(experiment, monkeypatch):
    monkeypatch.chdir(experiment[0])
    tables = {name: pd.read_csv(f"experiments/{name}.csv") for name in ("scale", "beta")}
    again = tables["beta"].assign(seed=1, final_loss=tables["beta"]["final_loss"] + 1)
    shown = run_cell("all", tables=tables | {"beta": pd.concat([tables["beta"], again])}).summary
    assert shown["実験"].tolist() == ["scale"] * 3 + ["beta"] * 3 and shown["設定"][3] == "beta=0.5"
    assert shown["final_loss"][3] == pytest.approx(tables["beta"]["final_loss"][0] + 0.5)
    compared = run_cell("compare", tables=tables, seeds=[42]).both
    for side, folder in (("左", tables["scale"]["folder"][0]), ("右", tables["scale"]["folder"][1])):
        answers = dpo.load_run(folder).answers.query("sample == 0").set_index("prompt")["dpo"]
        assert (compared[f"dpo（{side}）"] == compared["prompt"].map(answers)).all() and len(compared) == len(answers)


@NIGHTLY
def test_run_again_it_trains_nothing(experiment, tmp_path):
    executed, *models = experiment
    shutil.copytree(executed, tmp_path / "again")
    files = sorted((tmp_path / "again" / "experiments").glob("*/metrics.json"))
    times = [path.stat().st_mtime_ns for path in files]
    check_outputs(nbformat.from_dict(run_experiment(tmp_path / "again", *models)))
    assert [path.stat().st_mtime_ns for path in files] == times and len(files) == 16
