"""速さの比較です。仕様を文字どおりに書いた TRL の学習と、このプロジェクトの学習を、同じ条件で並べます。

    python tests/measure/benchmark.py --base out/base --output tests/results/benchmark.json

--base は、README のコマンド 1 が作った offline-tiny の元のモデルです。DialoGPT-small の形（重みは乱数）も測ります。
片方だけなら、--base を省くか、--full_pairs 0 を付けます。

計算機、データ、アダプタ、α、β、精度（float32）は同じです。仕様どおりの学習は、バッチ 1 × 勾配累積 4、TRL の既定の
gradient checkpointing で、参照モデルはその場で計算します。このプロジェクトの学習は `dpo.train_dpo` そのものです。
どちらもチェックポイントは書きません。時間は、トークンに直すところから学習の終わりまでで、参照モデルの計算を含みます。
順番を入れ替えながら繰り返し、中央値を取ります。
"""

import argparse
import cProfile
import json
import pstats
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from measure.full_size import make_full_size  # noqa: E402

import dpo_helpers as dpo  # noqa: E402

GPU = torch.cuda.is_available()


def matrix_rate() -> float:
    """この計算機の行列積の、1 秒あたりの浮動小数点演算の数です（float32 で、いちばん速かった回）。"""
    size, best = (8192 if GPU else 2048), 0.0
    left, right = (torch.randn(size, size, device="cuda" if GPU else "cpu") for _ in range(2))
    for _ in range(5):
        started = time.perf_counter()
        (left @ right).sum().item()
        best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


class Memory:
    """with の間のメモリの最大値（GiB）です。CPU ではプロセス全体、GPU では PyTorch が割り当てた量です。"""

    def __enter__(self):
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


def train_literally(config: dpo.Config, model, tokenizer, pairs):
    """仕様の文を、そのまま TRL に渡したものです。比べるのに要る、記録とデータの順番だけをそろえます。"""
    from transformers import PrinterCallback
    from trl import DPOConfig, DPOTrainer

    args = DPOConfig(
        output_dir=config.output_dir, per_device_train_batch_size=1, gradient_accumulation_steps=4, learning_rate=5e-6,
        num_train_epochs=1, max_length=128, beta=config.beta, warmup_steps=0.1, seed=config.seed, logging_steps=1,
        bf16=False, fp16=False, tf32=dpo.describe_runtime()["tf32"] or None, use_cpu=not GPU,
        train_sampling_strategy="sequential",
        dataloader_pin_memory=GPU, save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = DPOTrainer(model, args=args, train_dataset=pairs, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return trainer


def train_ours(config: dpo.Config, model, tokenizer, pairs, profile=None):
    """profile（cProfile）を渡すと、参照モデルの計算を除く、学習の繰り返しだけを記録します。"""
    from transformers import TrainerCallback

    class OnlyTrain(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            if profile:
                profile.enable()

        def on_step_end(self, args, state, control, **kwargs):
            control.should_save = False

        def on_train_end(self, args, state, control, **kwargs):
            if profile:
                profile.disable()

    return dpo.train_dpo(config.effective_batch_size, config, model, tokenizer, pairs, [OnlyTrain()])


def settings(base, name: str) -> dpo.Config:
    """name の推奨値の α とランクです。仕様の損失は DPO の項だけなので、どちらの側もそうします。"""
    config = dpo.Config(base_model=name, sft_weight=0.0, sft_epochs=0.0).resolved()
    return replace(config, base_model=str(base))


def measure(train, config: dpo.Config, count: int) -> dict:
    """count ペアの学習 1 回の、秒数、損失、メモリです。"""
    from accelerate.utils import release_memory
    from peft import get_peft_model
    from transformers import set_seed

    release_memory()
    with tempfile.TemporaryDirectory() as folder:
        config = replace(config, output_dir=folder)
        model, tokenizer = dpo.load_model(config)
        set_seed(config.seed)
        model = get_peft_model(model, dpo.lora_config(config, model))
        size = sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name)
        train_pairs, _ = dpo.split_and_shuffle(dpo.build_pairs(min(3000, max(60, 2 * count))), config)
        pairs = train_pairs.select(range(count)).select_columns(dpo.PAIR_COLUMNS)
        ids = dpo.tokenize_pairs(pairs, tokenizer)
        tokens = sum(2 * len(i["prompt_ids"]) + len(i["chosen_ids"]) + len(i["rejected_ids"]) for i in ids)
        with Memory() as memory:
            started = time.perf_counter()
            log = train(config, model, tokenizer, pairs).state.log_history
            seconds = time.perf_counter() - started
    return {"seconds": seconds, "loop_seconds": log[-1]["train_runtime"], "tokens": tokens, "parameters": size,
            "memory_gb": memory.peak, "losses": [row["loss"] for row in log if "loss" in row]}  # fmt: skip


def compare(name: str, config: dpo.Config, count: int, repeats: int, rate: float) -> dict:
    """仕様どおりと、このプロジェクトを、交互に repeats 回ずつ測ります。"""
    sides = {"literal": train_literally, "ours": train_ours}
    runs = {side: [] for side in sides}
    measure(train_ours, config, 4)  # 初めの 1 回は、読み込みなどで遅い
    for turn in range(repeats):
        for side in list(sides)[:: 1 if turn % 2 == 0 else -1]:
            runs[side].append(measure(sides[side], config, count))
            print(name, side, f"{count / runs[side][-1]['seconds']:.2f} ペア/秒", flush=True)
    seconds, loop = ({side: statistics.median(run[key] for run in each) for side, each in runs.items()}
                     for key in ("seconds", "loop_seconds"))  # fmt: skip
    ours, literal = runs["ours"][0], runs["literal"][0]
    return {
        "model": name, "pairs": count, "repeats": repeats,
        "literal_pairs_per_second": count / seconds["literal"], "our_pairs_per_second": count / seconds["ours"],
        "ratio": seconds["literal"] / seconds["ours"],
        "loop_ratio": loop["literal"] / loop["ours"],  # 学習の繰り返しだけ（参照モデルと準備を除く）
        "ratios": [a["seconds"] / b["seconds"] for a, b in zip(runs["literal"], runs["ours"], strict=True)],
        "largest_loss_difference": max(abs(a - b) for a, b in zip(ours["losses"], literal["losses"], strict=True)),
        "literal_memory_gb": max(run["memory_gb"] for run in runs["literal"]),
        "our_memory_gb": max(run["memory_gb"] for run in runs["ours"]),
        # LoRA では、パラメータとトークン一つあたり 6 回の演算: 学習と参照の順伝播、逆伝播のうち活性の分が、2 回ずつ
        "fraction_of_matrix_rate": 6 * ours["parameters"] * ours["tokens"] / seconds["ours"] / rate,
    }  # fmt: skip


def cost_by_size(config: dpo.Config, sizes: list[int], repeats: int) -> dict:
    """ペアの数ごとの、学習の 1 ペアあたりの秒数（学習の繰り返しの部分、repeats 回の中央値）です。"""
    costs = {size: [] for size in sizes}
    for _ in range(repeats):
        for size in sizes:
            costs[size].append(measure(train_ours, config, size)["loop_seconds"] / size)
    return {size: statistics.median(each) for size, each in costs.items()}


def head_share(config: dpo.Config, count: int) -> float:
    """1 ステップの時間のうち、TRL の出力層（対数確率、エントロピーなど）の計算の割合です（cProfile）。"""
    profile = cProfile.Profile()
    measure(partial(train_ours, profile=profile), config, count)
    rows = pstats.Stats(profile).stats.items()

    def seconds(file, names):
        return sum(row[3] for (path, _, name), row in rows if path.endswith(file) and name in names)

    step = seconds("trl/trainer/dpo_trainer.py", ("training_step",))
    return seconds("chunked_logprob.py", ("forward", "backward")) / step


def measure_all(args) -> dict:
    rate = matrix_rate()
    results = {"runtime": dpo.describe_runtime(), "matrix_gflops": rate / 1e9, "comparisons": [], "head_share": {}}
    if args.base:
        config = settings(args.base, "offline-tiny")
        results["comparisons"].append(compare("offline-tiny", config, args.pairs, args.repeats, rate))
        results["head_share"]["offline-tiny"] = head_share(config, min(200, args.pairs))
        results["seconds_per_pair"] = cost_by_size(config, args.sizes, args.repeats)
    if args.full_pairs:
        with tempfile.TemporaryDirectory() as folder:
            config, name = settings(make_full_size(folder), dpo.Config.base_model), "DialoGPT-small の形（重みは乱数）"
            results["comparisons"].append(compare(name, config, args.full_pairs, args.full_repeats, rate))
            results["head_share"][name] = head_share(config, args.full_pairs)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description="速さの比較")
    parser.add_argument("--base", help="offline-tiny の元のモデルのフォルダ（なければ、DialoGPT-small の形だけを測る）")
    parser.add_argument("--pairs", type=int, default=850, help="offline-tiny で使うペアの数")
    parser.add_argument("--sizes", type=int, nargs="*", default=[250, 500, 1000, 2000], help="1 ペアの時間を測る数")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--full_pairs", type=int, default=1000 if GPU else 16, help="DialoGPT-small の形で使う数")
    parser.add_argument("--full_repeats", type=int, default=3 if GPU else 2)
    parser.add_argument("--output", help="結果を書く JSON のファイル")
    args = parser.parse_args()
    text = json.dumps(measure_all(args), ensure_ascii=False, indent=1)
    print(text)
    if args.output:
        Path(args.output).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
