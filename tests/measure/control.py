"""DPO が、SFT だけに何を加えるかの測定です。コマンド 1 の結果ごとに、選好の項だけを外した対照を学習し、差を求めます。

    python tests/measure/control.py out out_0 out_1

対照（`add_control`）は、渡したフォルダの隣の `_control` に残ります。差（DPO あり − 対照）は、すべてのシードを合わせ、
シードと概念ごとに復元抽出した 95 % 信頼区間とともに、tests/results/control.json に書きます。2 コアで 5 分ほどです。
"""

import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

import dpo_helpers as dpo  # noqa: E402

RESULTS = ROOT / "tests" / "results" / "control.json"


def main(*folders: str) -> None:
    runs = [dpo.load_run(folder) for folder in folders]
    for run in runs:
        print(run.config.folder, dpo.add_control(run, dpo.prepare_pairs(run.config)), sep="\n", flush=True)
    both = [tuple(dpo.held_out_values([each]) for each in (folder, f"{folder}_control")) for folder in folders]
    found = {"seeds": [run.config.seed for run in runs]}
    for name in (*dpo.KIND_GROUPS, "chrf"):
        gains = np.concatenate([dpo_[name][0] - control[name][0] for dpo_, control in both])
        groups = [f"{i}:{group}" for i, (dpo_, _) in enumerate(both) for group in dpo_[name][1]]
        values = [np.concatenate([each[side][name][0] for each in both]).mean() for side in (0, 1)]
        difference = [gains.mean(), *dpo.cluster_interval(gains, groups)]
        found[name] = {"dpo": values[0], "control": values[1], "difference": difference}
    RESULTS.write_text(json.dumps(found, ensure_ascii=False, indent=1, default=float) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
