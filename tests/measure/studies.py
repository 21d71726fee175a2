"""実験ノートブックの本文に書く数の測定です。offline-tiny、三つのシードですべての実験を実行し、本文の表を作り直します。

2 コアの CPU で一時間ほどかかります。フォルダを渡すと、途中で止めても、そこから続きます。

    python tests/measure/studies.py 作業フォルダ && python tests/notebooks.py
"""

import json
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
TRAINING = {"最後の選好の損失": "{final_loss:.3f}", "学習用の正解率": "{accuracy_train:.1%}",
            "マージン": "{margin_after:.2f}"}  # fmt: skip
HELD_OUT = {  # 列の名前: (指標, 書式, 差に掛ける数と書式)
    "検証の選好の損失": ("eval_loss", "{:.3f}", 1, "{:+.3f}"),
    "検証の正解率": ("accuracy_after", "{:.1%}", 100, "{:+.1f}"),
    "chrF": ("chrf", "{:.1f}", 1, "{:+.1f}"),
    "欠点のある割合": ("flawed", "{:.1%}", 100, "{:+.1f}"),
}


def read_studies() -> dict[str, pd.DataFrame]:
    """保存した結果の、実験ごとの `sweep` の表です。"""
    saved = json.loads(RESULTS.read_text("utf-8"))
    return {name: pd.DataFrame(rows) for name, rows in saved["studies"].items()}


def read_gains() -> dict[str, dict[str, dict]]:
    """保存した、一番上の設定との差です: {実験: {設定: {指標: [差, 区間の下端, 上端]}}}。"""
    return json.loads(RESULTS.read_text("utf-8"))["gains"]


def gain_text(gain: list[float], scale: float, form: str) -> str:
    """差と、その 95 % 信頼区間です。区間が 0 を含まなければ、太字にします。"""
    difference, low, high = (form.format(scale * value).replace("-", "−") for value in gain)
    mark = "**" if gain[1] * gain[2] > 0 else ""
    return f"<br>{mark}{difference}{mark}（{low}〜{high}）"


def study_table(results: pd.DataFrame, gains: dict[str, dict]) -> str:
    """ノートブックの本文に置く、シードの平均の表（Markdown）です。検証の成績には、一番上との差を添えます。"""
    lines = [("設定", *TRAINING, *HELD_OUT), ("---",) * (1 + len(TRAINING) + len(HELD_OUT))]
    for label, rows in dpo.setting_groups(results).items():
        means, cells = rows.mean(numeric_only=True), []
        for name, form, scale, gain_form in HELD_OUT.values():
            gain = gains.get(label, {}).get(name)
            difference = gain_text(gain, scale, gain_form) if gain else ""
            cells.append("—" if pd.isna(means.get(name)) else form.format(means[name]) + difference)
        training = [form.format(**means).replace("nan", "—") for form in TRAINING.values()]  # 対照には、損失がない
        lines.append((label or "ベースライン", *training, *cells))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def study_gains(table: pd.DataFrame) -> dict[str, dict]:
    """一番上の設定との差です。検証のデータが違えば、空です。"""
    (_, first), *others = dpo.setting_groups(table).items()
    return {label: dpo.compare_runs(rows["folder"], first["folder"]) for label, rows in others}


def fill_tables() -> None:
    """ノートブックの本文の表を、保存した結果のものに入れ替えます。"""
    notebook, gains = nbformat.read(ROOT / NOTEBOOK, as_version=4), read_gains()
    texts = {cell.metadata.id: cell for cell in notebook.cells}
    for name, results in read_studies().items():
        table, cell = study_table(results, gains[name]), texts[f"{name}-result"]
        cell.source = re.sub(r"(^\|.*\n)+", lambda found, table=table: f"{table}\n", cell.source, flags=re.MULTILINE)
    nbformat.write(notebook, ROOT / NOTEBOOK)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    notebook = shutil.copy(ROOT / NOTEBOOK, folder)
    parameters = {"budget": "full", "base_model": "offline-tiny"}
    done = papermill.execute_notebook(notebook, folder / "out.ipynb", parameters, cwd=folder)
    names = [cell.metadata.id for cell in done.cells if cell.source.startswith("study(")]
    os.chdir(folder)  # 表の folder は、ノートブックから見たパス
    tables = {name: pd.read_csv(f"experiments/{name}.csv") for name in names}
    studies = {name: json.loads(t.drop(columns="folder").to_json(orient="records")) for name, t in tables.items()}
    gains = {name: study_gains(table) for name, table in tables.items()}
    saved = {"runtime": dpo.describe_runtime(), "studies": studies, "gains": gains}
    RESULTS.write_text(json.dumps(saved, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    fill_tables()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
