"""DialoGPT-small の形で、LoRA の α を選ぶための測定です。結果は tests/results/alpha.json に書きます。

本物の重みはここにないので、同じ形の乱数の重みに、生成した対の文を chosen と rejected の区別なく 2 回読ませたものを
代わりにします（乱数のままでは勾配が大きすぎて、参考になりません）。2 コアの CPU で、α 一つに 10 分ほどかかります。

    python tests/measure_alpha.py 作業フォルダ 256 1024 4096
"""

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from full_size import NAME, make_full_size  # noqa: E402

import dpo_helpers as dpo  # noqa: E402

RESULTS = Path(__file__).resolve().parent / "results" / "alpha.json"
KEPT = ("step", "loss", "loss/preference", "loss/sft", "grad_norm", "rewards/margins", "rewards/accuracies")


def make_stand_in() -> None:
    """作業フォルダに、代わりの重みを持つ `microsoft/DialoGPT-small` を作ります。"""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    random_weights = make_full_size(Path("random"))
    model = AutoModelForCausalLM.from_pretrained(random_weights, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(random_weights)
    pairs, texts = dpo.build_pairs(1000), []
    for side in ("chosen", "rejected"):
        for prompt, answer in zip(pairs["prompt"], pairs[side], strict=True):
            ids = tokenizer([prompt, f"{prompt}{answer}{tokenizer.eos_token}"])["input_ids"]
            texts.append((len(ids[0]), ids[1]))
    log = lambda status, _: print(status["step"], status["steps"], round(status["loss"], 3), flush=True)  # noqa: E731
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):  # 写しを使い回すと、重みが更新されない
        dpo._pretrain(model, texts, 0, log, epochs=2, learning_rate=1e-3)
    make_full_size(Path("."), model)


def measure(alpha: float) -> dict:
    """120 対で SFT と DPO を 1 エポックずつ行い、設定、経過、検証用の対の成績を返します。"""
    sft, started = [], time.perf_counter()

    def watch(status, rows):
        print(alpha, status["phase"], {name: round(rows[-1][name], 3) for name in KEPT if name in rows[-1]}, flush=True)
        if status["phase"] == "SFT":
            sft.append({name: rows[-1][name] for name in ("step", "loss", "grad_norm")})

    config = dpo.Config(base_model=NAME, num_pairs=120, sft_epochs=1.0, lora_alpha=alpha, output_dir=f"alpha-{alpha:g}")
    run = dpo.train(config, watch=watch)
    scores, answers = dpo.score_pairs(run, adapters=("warmup", "dpo")), dpo.answer_table(run)
    closeness = {which: [dpo.chrf(a, b) for a, b in zip(answers[which], answers["chosen"], strict=True)]
                 for which in dpo.ADAPTERS}  # fmt: skip
    return {
        "config": asdict(config.resolved()), "sft": sft,
        "history": [{name: row[name] for name in KEPT if name in row} for row in run.history],
        "eval_pairs": len(scores), "accuracy": float(scores["correct"].mean()),
        "margin": float(scores["margin"].mean()),
        "chrf": {which: sum(values) / len(values) for which, values in closeness.items()},
        "ended": {which: float(answers[f"{which}_ended"].mean()) for which in dpo.ADAPTERS},
        "seconds": time.perf_counter() - started,
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
