"""実験ノートブックの本文に書く数の測定です。offline-tiny、三つのシードですべての実験を実行し、本文の表を作り直します。

2 コアの CPU で一時間ほどかかります。途中で止めても、同じフォルダを渡すと、終わっていない実行から続きます。

    python tests/measure/studies.py 作業フォルダ && python tests/notebooks.py
"""

import json
import logging
import os
import re
import shutil
import sys
from pathlib import Path

import nbformat
import pandas as pd
import papermill

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import dpo_helpers as dpo  # noqa: E402

RESULTS = ROOT / "tests" / "results" / "studies.json"
NOTEBOOK = "dpo_training_experiment.ipynb"
TRAINING = {"学習用の正解率": "{accuracy_train:.1%}", "マージン": "{margin_after:.2f}"}
HELD_OUT = {  # 列の名前: (指標, 書式, 差の書式)。割合は、どれも %
    "検証の選好の損失": ("eval_loss", "{:.3f}", "{:+.3f}"),
    "検証の正解率": ("accuracy_after", "{:.1f}", "{:+.1f}"),
    "よい回答に近い": ("near_chosen", "{:.1f}", "{:+.1f}"),
    "欠点のある": ("flawed", "{:.1f}", "{:+.1f}"),
    "どの文とも違う": ("garbled", "{:.1f}", "{:+.1f}"),
}


def read_studies() -> dict[str, pd.DataFrame]:
    """保存した結果の、実験ごとの `sweep` の表です。"""
    saved = json.loads(RESULTS.read_text("utf-8"))
    return {name: pd.DataFrame(rows) for name, rows in saved["studies"].items()}


def read_levels() -> dict[str, dict[str, dict]]:
    """保存した、検証の成績です: {実験: {設定: {指標: [平均, 区間の下端, 上端]}}}。"""
    return json.loads(RESULTS.read_text("utf-8"))["levels"]


def read_gains() -> dict[str, dict[str, dict]]:
    """保存した、一番上の設定との差です: {実験: {設定: {指標: [差, 区間の下端, 上端]}}}。"""
    return json.loads(RESULTS.read_text("utf-8"))["gains"]


def cell_text(name: str, form: str, gain_form: str, level: dict, gain: dict) -> str:
    """成績と 95 % 信頼区間です。一番上との差（gain）があれば、区間は差のもので、0 を含まなければ太字にします。"""
    scale = 1 if name == "eval_loss" else 100
    value, *interval = (form.format(scale * each) for each in level[name])
    if name not in gain:
        return f"{value}（{'〜'.join(interval)}）"
    difference, low, high = (gain_form.format(scale * each).replace("-", "−") for each in gain[name])
    mark = "**" if gain[name][1] * gain[name][2] > 0 else ""
    return f"{value}<br>{mark}{difference}{mark}（{low}〜{high}）"


def study_table(name: str) -> str:
    """ノートブックの本文に置く、シードの平均の表（Markdown）です。検証の成績には、一番上との差を添えます。"""
    results, gains, levels = read_studies()[name], read_gains()[name], read_levels()[name]
    lines = [("設定", *TRAINING, *HELD_OUT), ("---",) * (1 + len(TRAINING) + len(HELD_OUT))]
    for label, rows in dpo.setting_groups(results).items():
        means, gain = rows.mean(numeric_only=True), gains.get(label, {})
        cells = [cell_text(*column, levels[label], gain) if column[0] in levels[label] else "—"
                 for column in HELD_OUT.values()]  # fmt: skip
        lines.append((label or "ベースライン", *(form.format(**means) for form in TRAINING.values()), *cells))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def study_levels(table: pd.DataFrame) -> dict[str, dict]:
    """設定ごとの、検証の成績と 95 % 信頼区間です: {設定: {指標: [平均, 区間の下端, 上端]}}。測れない指標は省きます。"""
    means = {label: dpo.held_out_values(rows["folder"]) for label, rows in dpo.setting_groups(table).items()}
    return {label: {name: [float(values.mean()), *dpo.cluster_interval(values, groups)]
                    for name, (values, groups) in each.items() if not pd.isna(values).any()}
            for label, each in means.items()}  # fmt: skip


def study_gains(table: pd.DataFrame) -> dict[str, dict]:
    """一番上の設定との差です。検証のデータが違えば、空です。"""
    (_, first), *others = dpo.setting_groups(table).items()
    return {label: dpo.compare_runs(rows["folder"], first["folder"]) for label, rows in others}


def fill_tables() -> None:
    """ノートブックの本文の表を、保存した結果のものに入れ替えます。"""
    notebook = nbformat.read(ROOT / NOTEBOOK, as_version=4)
    texts = {cell.metadata.id: cell for cell in notebook.cells}
    for name in read_studies():
        table, cell = study_table(name), texts[f"{name}-result"]
        cell.source = re.sub(r"(^\|.*\n)+", lambda found, table=table: f"{table}\n", cell.source, flags=re.MULTILINE)
    nbformat.write(notebook, ROOT / NOTEBOOK)


def main(folder: Path) -> None:
    logging.basicConfig(level="INFO", format="%(message)s")
    folder.mkdir(parents=True, exist_ok=True)
    notebook = shutil.copy(ROOT / NOTEBOOK, folder)
    parameters = {"budget": "full", "base_model": "offline-tiny"}
    out = folder / "out.ipynb"
    done = papermill.execute_notebook(notebook, out, parameters, cwd=folder, log_output=True)  # 残り時間も出る
    names = [cell.metadata.id for cell in done.cells if cell.source.startswith("study(")]
    os.chdir(folder)  # 表の folder は、ノートブックから見たパス
    tables = {name: pd.read_csv(f"experiments/{name}.csv") for name in names}
    studies = {name: json.loads(t.drop(columns="folder").to_json(orient="records")) for name, t in tables.items()}
    gains, levels = ({name: each(table) for name, table in tables.items()} for each in (study_gains, study_levels))
    pairs = dpo.data_digest(dpo.Config(), dpo.build_pairs())
    saved = {"runtime": dpo.describe_runtime(), "pairs": pairs, "studies": studies, "gains": gains, "levels": levels}
    RESULTS.write_text(json.dumps(saved, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    fill_tables()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
