"""GPU での測定です。DialoGPT-small の形（重みは乱数）で、各段階の秒数とメモリ、CPU との損失の差、速さの比を測ります。

    python tests/measure/gpu.py tests/results/gpu.json

1,000 ペアの実行は、利用者と同じ `train` から `save_run` までの関数です。重みが乱数なので、成績の予想にはなりません。
損失の差は、同じ重みとデータの DPO の最初の 20 ステップで、TF32 を使う場合と使わない場合を、CPU と比べます。
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from measure.benchmark import compare, matrix_rate, settings  # noqa: E402
from measure.full_size import make_full_size  # noqa: E402

import dpo_helpers as dpo  # noqa: E402

FIRST_STEPS = 20
SIDES = {"gpu": {}, "gpu_float32": {"NVIDIA_TF32_OVERRIDE": "0"}, "cpu": {"CUDA_VISIBLE_DEVICES": ""}}


class Phases:
    """段階ごとの秒数、そこまでのメモリの最大値（GiB）、順伝播のときの autocast と重みの型を記録します。"""

    def __init__(self):
        self.rows, self.states, self.started = {}, set(), time.perf_counter()
        torch.cuda.reset_peak_memory_stats()

    def see(self, module, args, output):
        """モデルの順伝播ごとに呼ばれる hook です。"""
        self.states.add((torch.is_autocast_enabled(), str(next(module.parameters()).dtype)))

    def end(self, name: str) -> None:
        torch.cuda.synchronize()
        now, memory = time.perf_counter(), torch.cuda.max_memory_allocated() / 2**30
        self.rows[name] = {"seconds": now - self.started, "peak_memory_gb": memory, "states": sorted(self.states)}
        self.started, self.states = now, set()


def run_phases(base: Path, folder: str) -> dict:
    """1,000 ペアの、準備から保存までの段階ごとの記録です。"""
    config = dpo.Config(base_model=str(base), output_dir=folder).resolved()
    phases = Phases()
    pairs = dpo.prepare_pairs(config)
    train_pairs, eval_pairs = dpo.split_and_shuffle(pairs, config)
    model, tokenizer = dpo.begin_run(config, pairs, None, print, None)
    model.get_base_model().register_forward_hook(phases.see)
    phases.end("準備")
    inputs = {"config": config, "model": model, "tokenizer": tokenizer, "pairs": train_pairs,
              "callbacks": [dpo.recorder(config)]}  # fmt: skip
    dpo.fit_sft(partial(dpo.train_sft, **inputs), model, config)
    phases.end("SFT")
    trainer = dpo.fit_memory(partial(dpo.train_dpo, **inputs), model, config.effective_batch_size)
    run = dpo.finish_run(config, trainer, train_pairs, eval_pairs)
    phases.end("DPO")
    dpo.evaluate_run(run)
    phases.end("評価と生成")
    dpo.save_run(run)
    phases.end("保存")
    return phases.rows


def first_losses(base: str, folder: str) -> None:
    """DPO の最初のステップの、選好の損失を表示します（環境変数を変えた、別のプロセスで呼ばれます）。"""
    config = dpo.Config(base_model=base, output_dir=folder, num_pairs=120, sft_epochs=0.0).resolved()
    pairs = dpo.prepare_pairs(config)
    train_pairs, _ = dpo.split_and_shuffle(pairs, config)
    model, tokenizer = dpo.begin_run(config, pairs, None, print, None)
    dpo.fit_sft(None, model, config)
    count, size = FIRST_STEPS * config.effective_batch_size, config.effective_batch_size
    trainer = dpo.train_dpo(size, config, model, tokenizer, train_pairs.select(range(count)), [dpo.recorder(config)])
    print(json.dumps([row["loss/preference"] for row in trainer.state.log_history if "loss" in row]))


def losses_by_device(base: Path, scratch: str) -> dict:
    """SIDES ごとの、最初のステップの選好の損失です。"""
    losses = {}
    for side, environment in SIDES.items():
        command = [sys.executable, __file__, "--first_losses", str(base), f"{scratch}/{side}"]
        shown = subprocess.check_output(command, env=os.environ | environment, text=True)
        losses[side] = json.loads(shown.splitlines()[-1])
    return losses


def main(output: str) -> None:
    results = {"runtime": dpo.describe_runtime()}
    with tempfile.TemporaryDirectory() as scratch:
        base = make_full_size(scratch)
        config = settings(base, dpo.Config.base_model)
        parts = {
            "phases": lambda: run_phases(base, f"{scratch}/run"),
            "first_losses": lambda: losses_by_device(base, scratch),
            "comparison": lambda: compare("DialoGPT-small の形", config, 200, 2, matrix_rate()),
        }
        for name, part in parts.items():
            results[name] = part()
            Path(output).write_text(json.dumps(results, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    first_losses(*sys.argv[2:]) if sys.argv[1] == "--first_losses" else main(sys.argv[1])
