"""速さの比較です。仕様を文字どおりに書いた TRL の学習と、このプロジェクトの学習を、同じ条件で並べます。

    python tests/benchmark.py --base out/base

--base は、README のコマンド 1 が作った offline-tiny の元のモデルです。DialoGPT-small の形（重みは乱数）も測ります。

計算機、データ、アダプタ、α、β、精度は同じです。仕様どおりの学習は、バッチ 1 × 勾配累積 4、TRL の既定の gradient
checkpointing で、参照モデルはその場で計算します。時間は、トークンに直すところから学習の終わりまでで、参照モデルの計算を
含みます。順番を入れ替えながら繰り返し、中央値を取ります。GPU があれば、fp16 も測ります。
"""

import argparse
import cProfile
import json
import math
import pstats
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import dpo_helpers as dpo  # noqa: E402

GPU = torch.cuda.is_available()


def matrix_rate() -> float:
    """この計算機の行列積の、一秒あたりの浮動小数点演算の数です（学習と同じ精度で、いちばん速かった回）。"""
    kind = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dpo.choose_precision()[0]]
    size, best = (8192 if GPU else 2048), 0.0
    left, right = (torch.randn(size, size, device="cuda" if GPU else "cpu", dtype=kind) for _ in range(2))
    for _ in range(5):
        started = time.perf_counter()
        (left @ right).sum().item()
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


class Memory:
    """with の間のメモリの最大値（GiB）です。CPU ではプロセス全体、GPU では PyTorch が割り当てた量です。"""

    def __enter__(self):
        dpo._free_memory()
        if GPU:
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM を、今の値に戻す（Linux）
        return self

    def __exit__(self, *error):
        if GPU:
            self.peak = torch.cuda.max_memory_allocated() / 2**30
        else:
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            self.peak = int(status["VmHWM"].split()[0]) / 2**20


def literal_trainer(model, tokenizer, data, config, folder):
    """仕様の文を、そのまま TRL に渡したものです。比べるのに要る、記録とデータの順番だけをそろえます。"""
    from trl import DPOConfig, DPOTrainer

    precision, _ = dpo.choose_precision()
    args = DPOConfig(
        output_dir=str(folder), per_device_train_batch_size=1, gradient_accumulation_steps=4, learning_rate=5e-6,
        num_train_epochs=1, max_length=128, beta=config.beta, warmup_steps=0.1, seed=config.seed, logging_steps=1,
        bf16=precision == "bf16", fp16=precision == "fp16", use_cpu=not GPU, train_sampling_strategy="sequential",
        save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    return DPOTrainer(model, args=args, train_dataset=data, processing_class=tokenizer)


def our_trainer(model, tokenizer, data, config, folder):
    options = dpo._batchings(config.effective_batch_size)[0] | {"save_strategy": "no"}
    reference = [dpo.answer_logps(model, tokenizer, data["prompt"], data[side])[0] for side in ("chosen", "rejected")]
    data = dpo._with_reference(dpo._as_texts(data, tokenizer), *reference)
    return dpo._preference_trainer(model, tokenizer, data, config, folder, options)


def settings(base, recommended: str) -> dpo.Config:
    """recommended の推奨値の α とランクです。仕様の損失は DPO の項だけなので、どちらの側もそうします。"""
    recipe = {name: dpo.RECOMMENDED[recommended][name] for name in ("lora_r", "lora_alpha")}
    return dpo.Config(base_model=str(base), sft_weight=0.0, sft_epochs=0.0, **recipe)


def measure(make, config: dpo.Config, pairs: int) -> dict:
    """一回の学習の、秒数、損失、メモリです。"""
    from transformers import PrinterCallback

    model, tokenizer = dpo.load_model(config)
    with tempfile.TemporaryDirectory() as folder:
        model = dpo._with_lora(model, config, Path(folder) / "none")
        train_pairs, _ = dpo.split_pairs(dpo.build_pairs(min(3000, max(60, 2 * pairs))))
        data = dpo._shuffled(train_pairs, 42).select(range(pairs)).select_columns(list(dpo.PAIR_COLUMNS))
        estimate = None
        if make is our_trainer:
            config = replace(config, output_dir=folder)
            texts = dpo._as_texts(data, tokenizer)
            estimate = dpo.estimate_training(model, tokenizer, texts, config, dpo._batchings(4)[0])
        tokens = sum(map(sum, dpo.token_lengths(data, tokenizer).values()))
        with Memory() as memory, dpo._quiet():
            started = time.perf_counter()
            trainer = make(model, tokenizer, data, config, folder)
            trainer.remove_callback(PrinterCallback)
            ready = time.perf_counter()
            trainer.train()
            ended = time.perf_counter()
    rows = [row for row in trainer.state.log_history if "loss" in row]
    size = sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name)
    return {
        "pairs": pairs, "seconds": ended - started, "loop_seconds": ended - ready, "tokens": tokens, "parameters": size,
        "memory_gb": memory.peak, "estimate": estimate, "losses": [row["loss"] for row in rows],
        "skipped": sum(not math.isfinite(row["grad_norm"]) for row in rows),
    }  # fmt: skip


def compare(name: str, config: dpo.Config, pairs: int, repeats: int, rate: float) -> dict:
    """仕様どおりと、このプロジェクトを、交互に repeats 回ずつ測ります。"""
    runs = {"literal": [], "ours": []}
    makers = {"literal": literal_trainer, "ours": our_trainer}
    measure(our_trainer, config, 4)  # 初めの一回は、読み込みなどで遅い
    for turn in range(repeats):
        for side in ("literal", "ours") if turn % 2 == 0 else ("ours", "literal"):
            runs[side].append(measure(makers[side], config, pairs))
            print(name, side, f"{pairs / runs[side][-1]['seconds']:.2f} 対/秒", flush=True)
    seconds = {side: statistics.median(run["seconds"] for run in each) for side, each in runs.items()}
    loop = {side: statistics.median(run["loop_seconds"] for run in each) for side, each in runs.items()}
    ours, literal = runs["ours"][0], runs["literal"][0]
    return {
        "model": name, "pairs": pairs, "repeats": repeats,
        "literal_pairs_per_second": pairs / seconds["literal"], "our_pairs_per_second": pairs / seconds["ours"],
        "ratio": seconds["literal"] / seconds["ours"],
        "loop_ratio": loop["literal"] / loop["ours"],  # 学習の繰り返しだけ（参照モデルと準備を除く）
        "ratios": [a["seconds"] / b["seconds"] for a, b in zip(runs["literal"], runs["ours"], strict=True)],
        "largest_loss_difference": max(abs(a - b) for a, b in zip(ours["losses"], literal["losses"], strict=True)),
        "literal_memory_gb": max(run["memory_gb"] for run in runs["literal"]),
        "our_memory_gb": max(run["memory_gb"] for run in runs["ours"]),
        # 見積もりが、実際（学習の繰り返しの秒数と、メモリの最大値）の何倍だったか
        "estimated_seconds_ratio": [run["estimate"]["dpo_seconds"] / run["loop_seconds"] for run in runs["ours"]],
        "estimated_memory_ratio": [run["estimate"]["memory_gb"] / run["memory_gb"] for run in runs["ours"]],
        # LoRA では、パラメータとトークン一つあたり 6 回の演算: 学習と参照の順方向、逆方向のうち活性の分が、2 回ずつ
        "fraction_of_matrix_rate": 6 * ours["parameters"] * ours["tokens"] / seconds["ours"] / rate,
    }  # fmt: skip


def cost_by_size(config: dpo.Config, sizes: list[int], repeats: int) -> dict:
    """対の数ごとの、学習の一対あたりの秒数（学習の繰り返しの部分、repeats 回の中央値）です。"""
    costs = {size: [] for size in sizes}
    for _ in range(repeats):
        for size in sizes:
            costs[size].append(measure(our_trainer, config, size)["loop_seconds"] / size)
    return {size: statistics.median(each) for size, each in costs.items()}


def head_share(config: dpo.Config, pairs: int) -> float:
    """一回の更新の時間のうち、TRL の出力層（対数確率、エントロピーなど）の計算の割合です（cProfile）。"""
    profile = cProfile.Profile()
    profile.runcall(measure, our_trainer, config, pairs)
    rows = pstats.Stats(profile).stats.items()

    def seconds(file, names):
        return sum(row[3] for (path, _, name), row in rows if path.endswith(file) and name in names)

    step = seconds("trl/trainer/dpo_trainer.py", ("training_step",))
    return seconds("chunked_logprob.py", ("forward", "backward")) / step


def half_precision(config: dpo.Config, pairs: int) -> dict:
    """fp16 にしたときの、飛ばした更新の数と、fp32 との損失の差です（GPU だけ）。"""
    results, chosen = {}, dpo.choose_precision
    try:
        for precision in ("fp32", "fp16"):
            dpo.choose_precision = lambda precision=precision: (precision, "")
            common = dpo._common_args
            dpo._common_args = lambda *args, **options: common(*args, **options) | {"use_cpu": False}  # noqa: B023
            results[precision] = measure(our_trainer, config, pairs)
            dpo._common_args = common
    finally:
        dpo.choose_precision = chosen
    differences = zip(results["fp16"]["losses"], results["fp32"]["losses"], strict=True)
    return {
        "fp16_seconds": results["fp16"]["seconds"], "fp32_seconds": results["fp32"]["seconds"],
        "skipped_updates": results["fp16"]["skipped"],
        "largest_loss_difference": max(abs(a - b) for a, b in differences),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description="速さの比較")
    parser.add_argument("--base", help="offline-tiny の元のモデルのフォルダ（なければ、DialoGPT-small の形だけを測る）")
    parser.add_argument("--full_pairs", type=int, default=1000 if GPU else 16, help="DialoGPT-small の形で使う対の数")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", help="結果を書く JSON のファイル")
    args = parser.parse_args()
    rate = matrix_rate()
    results = {"runtime": dpo.describe_runtime(), "matrix_gflops": rate / 1e9, "comparisons": []}
    if args.base:
        config = settings(args.base, "offline-tiny")
        results["comparisons"].append(compare("offline-tiny", config, 850, args.repeats, rate))
        results["head_share"] = {"offline-tiny": head_share(config, 200)}
        results["seconds_per_pair"] = cost_by_size(config, [250, 500, 1000, 2000], args.repeats)
    with tempfile.TemporaryDirectory() as folder:
        from full_size import make_full_size

        config = settings(make_full_size(folder), "microsoft/DialoGPT-small")
        name = "DialoGPT-small の形（重みは乱数）"
        results["comparisons"].append(compare(name, config, args.full_pairs, args.repeats if GPU else 2, rate))
        results.setdefault("head_share", {})[name] = head_share(config, args.full_pairs)
        if GPU:
            results["half_precision"] = half_precision(config, args.full_pairs)
    text = json.dumps(results, ensure_ascii=False, indent=1)
    print(text)
    if args.output:
        Path(args.output).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
