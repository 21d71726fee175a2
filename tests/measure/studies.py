"""実験ノートブックの本文に書く数の測定です。offline-tiny、三つのシードですべての実験を実行し、表を保存します。

2 コアの CPU で一時間ほどかかります。フォルダを渡すと、途中で止めても、そこから続きます。

    python tests/measure/studies.py 作業フォルダ
"""

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import papermill

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import dpo_helpers as dpo  # noqa: E402

RESULTS = ROOT / "tests" / "results" / "studies.json"
NOTEBOOK = "dpo_training_experiment.ipynb"
SHOWN = {  # 列の名前と書式
    "最後の選好の損失": "{final_loss:.3f}",
    "検証の正解率": "{accuracy_after:.1%}",
    "学習用の正解率": "{accuracy_train:.1%}",
    "マージン": "{margin_after:.2f}",
    "chrF": "{chrf:.1f}",
    "EOS まで生成した割合": "{ended:.1%}",
}


def read_studies() -> dict[str, pd.DataFrame]:
    """保存した結果の、実験ごとの `sweep` の表です。"""
    saved = json.loads(RESULTS.read_text("utf-8"))
    return {name: pd.DataFrame(rows) for name, rows in saved["studies"].items()}


def study_table(results: pd.DataFrame) -> str:
    """ノートブックの本文に置く、シードの平均の表（Markdown）です。"""
    lines = [("設定", *SHOWN), ("---",) * (len(SHOWN) + 1)]
    for label, rows in dpo.setting_groups(results).items():
        means = rows.mean(numeric_only=True)
        lines.append((label or "ベースライン", *(form.format(**means) for form in SHOWN.values())))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    notebook = shutil.copy(ROOT / NOTEBOOK, folder)
    parameters = {"budget": "full", "base_model": "offline-tiny"}
    done = papermill.execute_notebook(notebook, folder / "out.ipynb", parameters, cwd=folder)
    names = [cell.metadata.id for cell in done.cells if cell.source.startswith("study(")]
    tables = {name: pd.read_csv(folder / "experiments" / f"{name}.csv") for name in names}
    studies = {name: json.loads(t.drop(columns="folder").to_json(orient="records")) for name, t in tables.items()}
    text = json.dumps({"runtime": dpo.describe_runtime(), "studies": studies}, ensure_ascii=False, indent=1)
    RESULTS.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
