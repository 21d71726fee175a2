"""DialoGPT-small の形で、LoRA の α を選ぶための測定です。結果は tests/results/alpha.json に書きます。

本物の重みはここにないので、同じ形の乱数の重みに、生成したペアの文を chosen と rejected の区別なく 2 回読ませたものを
代わりにします（乱数のままでは勾配が大きすぎて、参考になりません）。2 コアの CPU で、α 一つに 10 分ほど、
代わりを作るのには、さらに長くかかります。

    python tests/measure/alpha.py 作業フォルダ 256 1024 4096
"""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from measure.full_size import NAME, make_full_size  # noqa: E402

import dpo_helpers as dpo  # noqa: E402

RESULTS = ROOT / "tests" / "results" / "alpha.json"
KEPT = ("step", "loss", "loss/preference", "loss/sft", "grad_norm", "rewards/margins", "rewards/accuracies")


def make_stand_in(epochs: float = 2.0, rows: int = 1000) -> None:
    """作業フォルダに、代わりの重みを持つ `microsoft/DialoGPT-small` を作ります。"""
    import torch
    from datasets import concatenate_datasets
    from trl import SFTConfig, SFTTrainer

    folder = make_full_size(Path("random"))
    model, tokenizer = dpo.load_model(dpo.Config(base_model=str(folder)))
    pairs = dpo.build_pairs(rows)
    texts = [
        pairs.select_columns(["prompt", side]).rename_column(side, "completion") for side in ("chosen", "rejected")
    ]
    args = SFTConfig(
        output_dir="stand-in", num_train_epochs=epochs, learning_rate=1e-3, per_device_train_batch_size=16,
        warmup_steps=0.1, bf16=True, use_cpu=not torch.cuda.is_available(), save_strategy="no", report_to="none",
    )  # fmt: skip
    SFTTrainer(model, args=args, train_dataset=concatenate_datasets(texts), processing_class=tokenizer).train()
    make_full_size(Path("."), model)


def measure(alpha: float, rows: int = 120) -> dict:
    """rows ペアで SFT と DPO を 1 エポックずつ行い、設定、経過、検証用のペアの成績を返します。"""
    folder = f"alpha-{alpha:g}"
    config = dpo.Config(base_model=NAME, num_pairs=rows, sft_epochs=1.0, lora_alpha=alpha, output_dir=folder)
    run = dpo.train(config, show=dpo.terminal_line)
    metrics, answers = dpo.evaluate_run(run), run.metrics["answers"]
    logs = {"sft": dpo.read_lines(run.config.folder / "sft" / "history.jsonl"), "history": run.history}
    return {"config": asdict(config.resolved())} | {
        name: [{key: row[key] for key in KEPT if key in row} for row in log if "loss" in row]
        for name, log in logs.items()
    } | {
        "eval_pairs": metrics["eval_pairs"], "accuracy": metrics["accuracy_after"], "margin": metrics["margin_after"],
        "chrf": {which: answers[which]["chrf"] for which in dpo.MODELS},
        "ended": {which: answers[which]["ended"] for which in dpo.MODELS}, "seconds": metrics["total_seconds"],
    }  # fmt: skip


def main(folder: str, *alphas: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    if not Path(NAME).is_dir():
        make_stand_in()
    for alpha in map(float, alphas):
        saved = json.loads(RESULTS.read_text("utf-8")) if RESULTS.exists() else {"runs": {}}
        saved["runs"][f"{alpha:g}"] = measure(alpha)
        saved["runtime"] = dpo.describe_runtime()
        RESULTS.write_text(json.dumps(saved, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
