"""実験ノートブックの本文に書く数の測定です。offline-tiny、1,000 対、三つの種ですべての実験を実行し、表を保存します。

2 コアの CPU で一時間ほどかかります。フォルダを渡すと、途中で止めても、そこから続きます。

    python tests/measure_studies.py 作業フォルダ
"""

import json
import shutil
import sys
from pathlib import Path

import pandas as pd
import papermill

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import dpo_helpers as dpo  # noqa: E402

RESULTS = Path(__file__).parent / "results" / "studies.json"
NOTEBOOK = "dpo_training_experiment.ipynb"
SHOWN = ["設定", "最後の損失", "検証の正解率", "学習用の正解率", "マージン", "chrF", "書き終えた"]


def read_studies() -> dict[str, pd.DataFrame]:
    """保存した結果の、実験ごとの `sweep` の表です。"""
    saved = json.loads(RESULTS.read_text("utf-8"))
    return {name: pd.DataFrame(rows) for name, rows in saved["studies"].items()}


def study_table(results: pd.DataFrame) -> str:
    """ノートブックの本文に置く、種の平均の表（Markdown）です。"""
    rows = dpo.sweep_table(results)[SHOWN].to_numpy().tolist()
    lines = [SHOWN, ["---"] * len(SHOWN), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


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
