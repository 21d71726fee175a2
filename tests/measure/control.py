"""DPO が、SFT だけに何を加えるかの測定です。コマンド 1 の結果ごとに、選好の項だけを外した対照を学習し、差を求めます。

    python tests/measure/control.py out out_0 out_1

元のモデルと SFT のあとのアダプタは、渡した結果のものを使い回します。差（DPO あり − 対照）は、すべてのシードを合わせ、
シードと概念ごとに復元抽出した 95 % 信頼区間とともに、tests/results/control.json に書きます。2 コアで 5 分ほどです。
"""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

import dpo_helpers as dpo  # noqa: E402

RESULTS = ROOT / "tests" / "results" / "control.json"


def train_control(folder: Path, work: str) -> Path:
    """folder の実行と、選好の損失の重みだけが違う実行の、結果のフォルダです。"""
    config = replace(dpo.load_config(folder / "config.json"), preference_weight=0.0, output_dir=f"{work}/{folder.name}")
    pairs = dpo.prepare_pairs(config)
    dpo.claim_folder(config, pairs)
    for part in ("base", "sft"):
        dpo.copy_folder(folder / part, config.folder / part)
    run = dpo.train(config, pairs, show=dpo.terminal_line)
    dpo.evaluate_run(run)
    return dpo.save_run(run)


def main(*folders: str) -> None:
    found = {"seeds": [dpo.load_config(Path(folder) / "config.json").seed for folder in folders]}
    with tempfile.TemporaryDirectory() as work:
        both = [tuple(map(dpo.held_out_values, (folder, train_control(Path(folder), work)))) for folder in folders]
    for name in (*dpo.KIND_GROUPS, "chrf"):
        gains = np.concatenate([dpo_[name][0] - control[name][0] for dpo_, control in both])
        groups = [f"{i}:{group}" for i, (dpo_, _) in enumerate(both) for group in dpo_[name][1]]
        values = [np.concatenate([each[side][name][0] for each in both]).mean() for side in (0, 1)]
        difference = [gains.mean(), *dpo.cluster_interval(gains, groups)]
        found[name] = {"dpo": values[0], "control": values[1], "difference": difference}
    RESULTS.write_text(json.dumps(found, ensure_ascii=False, indent=1, default=float) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
