"""判定の確かめに使う、四つの実行の測定です。ふつう、熱すぎる（α × 16）、動かない（学習率 1e-8）、左右が逆、の四つです。

    python tests/measure/verdicts.py コマンド 1 の結果のフォルダ

元のモデルは、渡した結果のものを使い回します。指標と DPO の経過を tests/results/verdicts.json に写します。2 コアの CPU
で 5 分ほどです。
"""

import json
import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

import dpo_helpers as dpo  # noqa: E402

RESULTS = ROOT / "tests" / "results" / "verdicts.json"
KEPT = ("loss", "loss/preference", "rewards/accuracies", "rewards/margins", "rewards/chosen")
RUNS = {"normal": {}, "hot": {"lora_alpha": 16 * 16000.0}, "null": {"learning_rate": 1e-8}, "swapped": {}}


def swapped(pairs, config):
    """学習用のペアだけ、chosen と rejected を入れ替えたものです。"""
    held_out = dpo.held_out_rows(pairs, config.eval_fraction, config.data_seed)
    rows = pairs.to_list()
    for i, row in enumerate(rows):
        if i not in held_out:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    return rows


def measure(base: Path, name: str, folder: str) -> dict:
    """1 回の実行の、指標と DPO の経過です。"""
    config = dpo.Config(base_model="offline-tiny", output_dir=f"{folder}/{name}", **RUNS[name]).resolved()
    pairs = dpo.load_pairs(dpo.prepare_pairs(config))
    if name == "swapped":
        pairs = dpo.load_pairs(swapped(pairs, config))
    dpo.claim_folder(config, pairs)
    shutil.copytree(base, config.folder / "base")
    run = dpo.train(config, pairs, show=dpo.terminal_line)
    history = [{key: round(row[key], 5) for key in KEPT} for row in run.history]
    return {"metrics": dpo.evaluate_run(run), "history": history}


def main(folder: str) -> None:
    with tempfile.TemporaryDirectory() as work:
        found = {name: measure(Path(folder) / "base", name, work) for name in RUNS}
    RESULTS.write_text(json.dumps(found, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
