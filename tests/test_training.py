"""学習・採点・生成・保存の段取りを、ごく小さなモデルで確かめます。"""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import version

import numpy as np
import pytest
import torch
from conftest import StopAt, adapter_difference, arguments, finish
from transformers import GPT2Model

import dpo_helpers as dpo


@pytest.mark.colab
def test_first_preference_loss_is_ln_2_and_margin_0(small_run):
    first = small_run.history[0]
    assert first["loss/preference"] == pytest.approx(math.log(2), abs=1e-4)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)


UNEVEN = [  # 回答の長さが、12 倍まで違う
    {"prompt": f"質問{i}？", "chosen": "よい。" * (1 + 11 * (i % 2)), "rejected": "わるい。" * (1 + 7 * (i % 3 // 2))}
    for i in range(24)
]


@pytest.mark.parametrize(("micro", "weight"), [(4, 16.0), (2, 16.0), (1, 16.0), (1, 0.0)])
def test_preference_loss_is_exact_whatever_the_micro_batches(micro, weight, still_base, small_config):
    """動かない学習率では、どのステップも ln 2 です。

    動く学習率でも、選好の項だけなら、4 ペアを一度に計算したときと同じです（SFT の項は、分けるごとの平均です）。
    """
    config = small_config(base_model=str(still_base), learning_rate=1e-12, sft_epochs=0.0, sft_weight=weight)
    for row in history_of(config, micro):
        assert row["loss/preference"] == pytest.approx(math.log(2), abs=1e-4)
        assert row["loss"] == pytest.approx(row["loss/preference"] + weight * row["loss/sft"], rel=1e-5)
    if not weight:
        whole, split = (history_of(replace(config, learning_rate=5e-6, output_dir=f"{config.output_dir}-{size}"), size)
                        for size in (4, micro))  # fmt: skip
        expected = [row["loss/preference"] for row in whole]
        assert [row["loss/preference"] for row in split] == pytest.approx(expected, abs=1e-4)
        assert expected[-1] != pytest.approx(math.log(2), abs=1e-3)


def test_with_one_pair_a_step_the_preference_loss_is_the_paper_s(still_base, small_config):
    config = small_config(base_model=str(still_base), gradient_accumulation_steps=1, sft_epochs=0.0, lora_alpha=4000.0)
    rows = history_of(config, 1)
    expected = [np.logaddexp(0, -row["rewards/margins"]) for row in rows]
    assert [row["loss/preference"] for row in rows] == pytest.approx(expected, abs=1e-4)
    assert rows[0]["rewards/accuracies"] == 0.5 and max(row["rewards/margins"] for row in rows) > 0.1


def history_of(config, micro):
    """マイクロバッチが micro の DPO の、ステップごとの記録です。"""
    config, pairs = config.resolved(), dpo.load_pairs(UNEVEN)
    model, tokenizer = dpo.begin_run(config, pairs, None, str, None)
    trainer = dpo.train_dpo(micro, config, model, tokenizer, pairs, [dpo.recorder(config)])
    return [row for row in trainer.state.log_history if "loss" in row]


@pytest.mark.colab
def test_scores_agree_with_a_direct_computation_and_with_the_reference_of_trl(small_run):
    row, config = dpo.score_pairs(small_run, small_run.eval_pairs).iloc[0], small_run.config
    model, tokenizer = small_run.model.eval(), small_run.tokenizer
    question = f"質問: {row['prompt']}\n回答:"
    prompt = tokenizer(question)["input_ids"]
    whole = torch.tensor([tokenizer(question + row["chosen"] + tokenizer.eos_token)["input_ids"]])
    with torch.no_grad():
        logps = model(whole).logits[0, :-1].log_softmax(-1).gather(1, whole[0, 1:, None])[len(prompt) - 1 :]
    assert row["logp_dpo_chosen"] == pytest.approx(logps.sum().item(), abs=1e-3)
    assert row["reward_chosen"] == pytest.approx(config.beta * (row["logp_dpo_chosen"] - row["logp_sft_chosen"]))
    with dpo.with_adapter(model, "sft"):
        first = dpo.pair_logps(model, tokenizer, small_run.train_pairs.select(range(4))).mean(axis=0)  # 初めのステップ
    logged = [small_run.history[0][f"logps/{side}"] for side in ("chosen", "rejected")]
    assert first == pytest.approx(logged, abs=1e-3)


@pytest.mark.colab
def test_training_stopped_in_a_notebook_goes_on_in_float32_with_the_same_arguments(small_config, monkeypatch):
    """切れたあと、LoRA の付いたモデルを渡し直しても、同じ結果です。どの計算も、autocast のない float32 です。"""
    forward, seen = GPT2Model.forward, []

    def recorded(self, *args, **options):
        out = forward(self, *args, **options)
        kinds = {out.last_hidden_state.dtype, *(weight.dtype for weight in self.parameters())}
        seen.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), *kinds))
        return out

    monkeypatch.setattr(GPT2Model, "forward", recorded)
    expected, config = finish(small_config(num_train_epochs=5.0)), small_config(num_train_epochs=5.0)
    pairs, base, fresh = dpo.prepare_pairs(config), dpo.load_model(config), len(seen)
    with pytest.raises(KeyboardInterrupt):
        dpo.train(config, pairs, base, [StopAt(60)])
    assert dpo.last_checkpoint(config.folder / "checkpoints" / "dpo").endswith("checkpoint-50")
    again, resumed = finish(config, pairs, base=base), len(seen)
    assert adapter_difference(again.config.folder, expected.config.folder) < 1e-6
    assert [row["loss"] for row in again.history] == [row["loss"] for row in expected.history]
    assert again.metrics["accuracy_after"] == expected.metrics["accuracy_after"]
    for part in (seen[:fresh], seen[fresh:resumed]):
        assert set(part) == {(True, False, torch.float32), (False, False, torch.float32)}


PLAIN = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model, tokenizer = AutoModelForCausalLM.from_pretrained(sys.argv[1]), AutoTokenizer.from_pretrained(sys.argv[1])
inputs = tokenizer.apply_chat_template(
    [{"role": "user", "content": sys.argv[2]}], add_generation_prompt=True, return_dict=True, return_tensors="pt")
ids = model.generate(**inputs, max_length=56, do_sample=False)[0]
print(model.dtype, tokenizer.decode(ids[inputs["input_ids"].shape[1]:], skip_special_tokens=True).strip())
"""


def test_a_merged_model_needs_transformers_alone(small_run, tmp_path):
    question = small_run.eval_pairs["prompt"][0]
    answer = dpo.generate_response(question, small_run.model, small_run.tokenizer, 56)
    with dpo.with_adapter(small_run.model, "base"):
        assert dpo.generate_response(question, small_run.model, small_run.tokenizer, 56) != answer
    assert dpo.merge_run(small_run, tmp_path / "merged") < 1e-4
    files = {path.name for path in (tmp_path / "merged").iterdir()}
    assert {"model.safetensors", "tokenizer.json", "generation_config.json"} <= files - {"adapter_config.json"} == files
    command = [sys.executable, "-c", PLAIN, str(tmp_path / "merged"), question]
    assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == f"torch.float32 {answer}"
    with pytest.raises(dpo.HelperError, match="merged に別のもの"):
        dpo.merge_run(small_run, tmp_path / "merged")
    assert 0 < dpo.merge_run(small_run, tmp_path / "half", "float16") < 0.5
    assert (tmp_path / "half" / "model.safetensors").stat().st_size < 0.6 * (
        tmp_path / "merged" / "model.safetensors").stat().st_size  # fmt: skip


def test_the_card_describes_the_adapter_and_its_program_runs_anywhere(small_run, tmp_path):
    from huggingface_hub import ModelCard

    shutil.copytree(small_run.config.folder, tmp_path / "copied")
    text = (tmp_path / "copied" / "adapter" / "README.md").read_text("utf-8")
    data = ModelCard(text).data.to_dict()
    assert data == {
        "library_name": "peft", "pipeline_tag": "text-generation", "base_model": small_run.config.base_model,
        "base_model_relation": "adapter", "tags": ["dpo", "lora", "trl"], "language": "ja",
    }  # fmt: skip
    assert small_run.metrics["verdict_reason"] in text and f"torch {version('torch')}" in text
    code = text.split("```python")[1].split("```")[0]
    command, there = [sys.executable, "-c", code], tmp_path / "copied" / "adapter"
    done = subprocess.run(command, cwd=there, capture_output=True, text=True)
    assert "AIとは何ですか？" in done.stdout, done.stderr


@pytest.mark.colab
def test_run_folder_is_whole_and_has_every_promised_metric(small_run):
    names = {path.name for path in small_run.config.folder.iterdir()}
    assert names >= {"adapter", "sft", "metrics.json", "history.jsonl", "pairs.jsonl", "answers.jsonl", "config.json",
                     "environment.json", "answers.png", "history.png", "accuracy.png"}  # fmt: skip
    adapter = {path.name for path in (small_run.config.folder / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md"} <= adapter
    drafts_and_pickles = {".tmp", ".bin", ".pt", ".pth", ".pkl"}
    assert not drafts_and_pickles & {path.suffix for path in small_run.config.folder.rglob("*")}
    saved = json.loads((small_run.config.folder / "metrics.json").read_text("utf-8"))
    assert set(saved) >= {
        "steps", "first_loss", "final_loss", "peak_loss",
        "eval_loss", "eval_loss_interval", "accuracy_after", "accuracy_interval",
        "accuracy_train", "accuracy_by_flaw", "logp_accuracy_base", "logp_accuracy_sft", "logp_accuracy_dpo",
        "margin_after", "margin_size", "drift", "train_seconds", "total_seconds", "pairs_per_second", "peak_memory_gb",
        "verdict", "verdict_reason",
    }  # fmt: skip
    assert saved["train_pairs"] + saved["eval_pairs"] == 60
    intervals = {"chrf_gain_interval", *(f"{name}_change_interval" for name in dpo.KIND_GROUPS)}
    assert set(saved["answers"]) == {"base", "sft", "dpo", "sampled", "chrf_gain"} | intervals
    rates = {"near_chosen", "chrf", "ended", "empty", "repeats", "readable", "broken", "garbled", "flawed"}
    for answers in (saved["answers"], saved["answers"]["sampled"]):
        assert all(set(answers[which]) == rates and set(answers[which]["flawed"]) == set(dpo.FLAWS)
                   for which in dpo.MODELS)  # fmt: skip
    assert sum(n for _, n in saved["accuracy_by_flaw"].values()) == saved["eval_pairs"]


def test_the_sft_only_control_learns_and_has_no_preference_loss(small_config):
    config = small_config(preference_weight=0.0, sft_epochs=0.0)
    run = finish(config)
    assert all(math.isnan(row["loss/preference"]) for row in run.history)
    assert all(row["loss"] == pytest.approx(config.sft_weight * row["loss/sft"], rel=1e-4) for row in run.history)
    scores = run.scores[run.scores["split"] == "train"]
    assert scores["logp_dpo_chosen"].mean() > scores["logp_sft_chosen"].mean()
    assert math.isfinite(run.metrics["eval_loss"])
    assert dpo.load_run(config.folder).metrics["verdict_reason"] == run.metrics["verdict_reason"] != dpo.say("nan")


@pytest.mark.colab
def test_two_line_loading_and_load_run_give_the_trained_model(small_run, small_base):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = small_run.config.folder
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(small_base), folder / "adapter")
    scores, loaded, expected = dpo.score_pairs(small_run, small_run.eval_pairs), dpo.load_run(folder), {}
    for which in dpo.MODELS:
        expected[which] = scores[[f"logp_{which}_chosen", f"logp_{which}_rejected"]].to_numpy()
        with dpo.with_adapter(loaded.model, which):
            got = dpo.pair_logps(loaded.model, loaded.tokenizer, loaded.eval_pairs)
        assert got == pytest.approx(expected[which], abs=1e-4)
    assert dpo.pair_logps(plain, loaded.tokenizer, loaded.eval_pairs) == pytest.approx(expected["dpo"], abs=1e-4)
    assert loaded.history == small_run.history
    assert dpo.evaluate_run(loaded) == json.loads(json.dumps(small_run.metrics))


@pytest.mark.colab
def test_generate_response_adds_what_the_prompt_lacks(small_run):
    answers = {
        dpo.generate_response(prompt, small_run.model, small_run.tokenizer)
        for prompt in ("AIとは何ですか？", "質問: AIとは何ですか？", "質問: AIとは何ですか？\n回答:")
    }
    assert len(answers) == 1 and isinstance(answers.pop(), str)
    with pytest.raises(dpo.HelperError, match="上限の 128 に達します"):
        dpo.generate_response("とても長い質問です。" * 60, small_run.model, small_run.tokenizer)


@pytest.mark.colab
def test_a_finished_run_is_shown_unchanged_and_another_run_is_refused(small_run, capsys):
    def state():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in small_run.config.folder.rglob("*")}

    command, before = arguments(small_run.config), state()
    assert dpo.main(command) == 0
    out = capsys.readouterr().out
    assert "終わっている" in out and f"判定: {small_run.metrics['verdict']}" in out
    for other in (["--beta", "0.25"], ["--data_seed", "7"]):
        assert dpo.main([*command, *other]) == 2
        assert "設定かデータの違う実行" in capsys.readouterr().err
    with pytest.raises(dpo.HelperError, match="設定かデータの違う実行"):
        dpo.train(small_run.config, dpo.build_pairs(60, 7))
    assert state() == before


def test_the_users_own_pairs_come_back_and_records_go_to_tensorboard(small_config):
    rows = [{"prompt": f"{i}", "chosen": f"{i} です。", "rejected": "2026-01-01"} for i in range(20)]
    run = finish(small_config(report_to="tensorboard"), rows)
    loaded = dpo.load_run(run.config.folder)
    assert loaded.eval_pairs.to_list() == run.eval_pairs.to_list()
    assert loaded.train_pairs.to_list() == run.train_pairs.to_list()
    (record,) = run.config.folder.rglob("events.out.tfevents.*")
    assert all(name in record.read_bytes() for name in (b"rewards/margins", b"loss/preference", b"loss/sft"))
