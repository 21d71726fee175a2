"""推奨値を決めたときの測定です。推奨値から一つずつ変えて学習し、結果を tests/results/recipe.json に書きます。

README のコマンド 1 が作った元のモデルのフォルダを渡します（2 コアの CPU で 8 分ほど）。

    python tests/measure/recipe.py out/base
"""

import json
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import dpo_helpers as dpo  # noqa: E402

RESULTS = ROOT / "tests" / "results" / "recipe.json"
VARIANTS = {
    "推奨値": {},
    "α を 1/4 に": {"lora_alpha": dpo.RECOMMENDED["offline-tiny"]["lora_alpha"] / 4},
    "α を 4 倍に": {"lora_alpha": dpo.RECOMMENDED["offline-tiny"]["lora_alpha"] * 4},
    "α を慣例の 2r に": {"lora_alpha": 2.0 * dpo.RECOMMENDED["offline-tiny"]["lora_r"]},
    "ランクを 8 に": {"lora_r": 8},
    "ランクを 256 に": {"lora_r": 256},
    "β を 0.1 に": {"beta": 0.1},
    "SFT の項なし": {"sft_weight": 0.0},
    "勾配ノルムを切らない": {"max_grad_norm": 0.0},
    "SFT を 1 エポック先に": {"sft_epochs": 1.0},
}
KEPT = ("first_loss", "final_loss", "eval_loss", "accuracy_after", "accuracy_interval", "accuracy_by_flaw",
        "margin_after")  # fmt: skip


def place_base(base: Path, config: dpo.Config) -> None:
    """作り終えた元のモデルを config のフォルダに置き、作り直す時間を省きます。"""
    dpo.claim_folder(config.resolved(), dpo.prepare_pairs(config))
    shutil.copytree(base, config.folder / "base")


def measure(base: Path, folder: Path, changes: dict) -> dict:
    config = dpo.Config(base_model="offline-tiny", output_dir=str(folder), **changes)
    place_base(base, config)
    metrics = dpo.evaluate_run(dpo.train(config))
    answers = {key: metrics["answers"][key] for key in ("chrf_gain", "chrf_gain_interval", "dpo")}
    return {"config": asdict(config.resolved())} | {key: metrics[key] for key in KEPT} | {"answers": answers}


def main(base: Path) -> None:
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number, (name, changes) in enumerate(VARIANTS.items()):
            results[name] = measure(base, Path(scratch, str(number)), changes)
            print(name, {key: results[name][key] for key in KEPT}, results[name]["answers"], flush=True)
    text = json.dumps({"runtime": dpo.describe_runtime(), "runs": results}, ensure_ascii=False, indent=1)
    RESULTS.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
