"""学習・採点・生成・保存の段取りを、ごく小さなモデルで確かめます。"""

import json
import math
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from conftest import run_cli

import dpo_helpers as dpo


def adapter_difference(left: Path, right: Path) -> float:
    from safetensors.torch import load_file

    a, b = (load_file(folder / "adapter" / "adapter_model.safetensors") for folder in (left, right))
    assert a.keys() == b.keys()
    return max((a[name] - b[name]).abs().max().item() for name in a)


def test_first_preference_loss_is_ln_2_and_margin_0(small_run):
    first = small_run.history[0]
    assert first["loss/preference"] == pytest.approx(math.log(2), abs=1e-4)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-4)
    total = first["loss/preference"] + small_run.config.sft_weight * first["loss/sft"]
    assert first["loss"] == pytest.approx(total, abs=1e-3)


def test_preference_loss_is_split_from_the_sft_term_exactly(small_config):
    """SFT の項を足さない実行と足した実行で、最初の選好の損失が一致します。長さの上限で切れる対を含みます。"""
    for weight in (0.0, 8.0):
        run = dpo.train(small_config(sft_weight=weight, max_length=24))
        assert run.history[0]["loss/preference"] == pytest.approx(math.log(2), abs=1e-4)


def test_scores_agree_with_trl_and_with_a_direct_computation(small_run):
    scores = small_run.scores[small_run.scores["split"] == "eval"].reset_index(drop=True)
    model, tokenizer, row = small_run.model.eval(), small_run.tokenizer, scores.iloc[0]
    prompt = tokenizer(row["prompt"])["input_ids"]
    whole = torch.tensor([tokenizer(row["prompt"] + row["chosen"] + tokenizer.eos_token)["input_ids"]])
    with torch.no_grad():
        logps = model(whole).logits[0, :-1].log_softmax(-1).gather(1, whole[0, 1:, None])[len(prompt) - 1 :]
    assert row["logp_dpo_chosen"] == pytest.approx(logps.sum().item(), abs=1e-3)
    assert row["tokens_chosen"] == len(logps)
    expected = small_run.config.beta * (row["logp_dpo_chosen"] - row["logp_warmup_chosen"])
    assert row["reward_chosen"] == pytest.approx(expected)


def test_training_stopped_in_a_notebook_goes_on_with_the_same_arguments(small_config):
    """セルを止めて実行し直したとき（base は LoRA を含み、フォルダの鍵も残っている）、同じ結果になります。"""
    expected, config = dpo.train(small_config()), small_config()
    pairs, base = dpo.prepare_pairs(config), dpo.load_model(config)

    def stop(status, history):
        if status["phase"] == "DPO" and status["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dpo.train(config, pairs, watch=stop, base=base)
    again = dpo.train(config, pairs, base=base)
    dpo.evaluate_run(again)
    dpo.save_run(again)
    dpo.evaluate_run(expected)
    dpo.save_run(expected)
    assert adapter_difference(again.folder, expected.folder) == 0
    finished = dpo.train(config, pairs, base=base)  # 終わった実行は、結果を読むだけ
    assert finished.metrics == json.loads(json.dumps(again.metrics))


def test_metrics_have_every_promised_field(small_run):
    promised = {
        "first_loss", "final_loss", "train_seconds", "total_seconds", "pairs_per_second", "peak_memory_gb",
        "train_pairs", "eval_pairs", "accuracy_after", "accuracy_interval", "logp_accuracy_before",
        "logp_accuracy_after",
        "accuracy_by_flaw", "margin_after", "answers", "verdict",
    }  # fmt: skip
    saved = json.loads((small_run.folder / "metrics.json").read_text("utf-8"))
    assert promised <= set(saved)
    assert saved["train_pairs"] + saved["eval_pairs"] == 60
    assert set(saved["answers"]) >= set(dpo.ADAPTERS) and saved["verdict"] in ("学習した", "暗記した", "信号なし")
    assert sum(n for _, n in saved["accuracy_by_flaw"].values()) == saved["eval_pairs"]


def test_run_folder_is_complete_and_leaves_no_drafts(small_run):
    names = {p.name for p in small_run.folder.iterdir()}
    assert names >= {"adapter", "warmup", "checkpoints", "metrics.json", "history.jsonl", "pairs.jsonl", "config.json",
                     "environment.json", "README.md", "history.png", "margins.png"}  # fmt: skip
    assert not [name for name in names if name.endswith(".tmp")]
    adapter = {p.name for p in (small_run.folder / "adapter").iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json"} <= adapter and "ref" not in adapter
    assert not [p for p in (small_run.folder / "adapter").rglob("*") if p.suffix in (".bin", ".pt", ".pkl")]


def test_a_loaded_run_can_be_evaluated_again(small_run):
    again = dpo.evaluate_run(dpo.load_run(small_run.folder))
    assert again["accuracy_after"] == small_run.metrics["accuracy_after"]
    assert again["train_seconds"] == small_run.metrics["train_seconds"]


def test_two_line_loading_and_load_run_give_the_trained_model(small_run, small_base):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    pairs, tokenizer = small_run.eval_pairs, small_run.tokenizer
    want, _ = dpo.answer_logps(small_run.model, tokenizer, pairs["prompt"], pairs["chosen"])
    plain = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(small_base), small_run.folder / "adapter")
    loaded = dpo.load_run(small_run.folder)
    for model in (plain, loaded.model):
        got, _ = dpo.answer_logps(model, tokenizer, pairs["prompt"], pairs["chosen"])
        assert got == pytest.approx(want, abs=1e-4)
    want = dpo.score_pairs(small_run)["margin"].tolist()
    assert dpo.score_pairs(loaded)["margin"].tolist() == pytest.approx(want, abs=1e-4)
    assert loaded.metrics == json.loads(json.dumps(small_run.metrics)) and loaded.history == small_run.history


def test_load_run_brings_back_the_users_own_pairs(small_config, tmp_path):
    rows = [{"prompt": f"{i}", "chosen": f"{i} です。", "rejected": "2026-01-01"} for i in range(20)]
    run = dpo.train(small_config(output_dir=tmp_path / "own"), rows)
    dpo.evaluate_run(run)
    loaded = dpo.load_run(dpo.save_run(run))
    assert loaded.eval_pairs.to_list() == run.eval_pairs.to_list()
    assert loaded.train_pairs.to_list() == run.train_pairs.to_list()
    assert run.metrics["accuracy_by_flaw"] == {} and (run.folder / "margins.png").stat().st_size > 1000


def test_saving_elsewhere_gives_a_folder_that_loads(small_run, tmp_path):
    copy = dpo.load_run(dpo.save_run(small_run, tmp_path / "copy"))
    assert copy.metrics["verdict"] == small_run.metrics["verdict"]
    assert adapter_difference(copy.folder, small_run.folder) == 0
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("大切")
    with pytest.raises(dpo.HelperError, match="空のフォルダ"):
        dpo.save_run(small_run, tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "大切"


def test_generate_response_adds_what_the_prompt_lacks(small_run):
    answers = {
        dpo.generate_response(prompt, small_run.model, small_run.tokenizer)
        for prompt in ("AIとは何ですか？", "質問: AIとは何ですか？", "質問: AIとは何ですか？\n回答:")
    }
    assert len(answers) == 1 and isinstance(answers.pop(), str)
    with pytest.raises(dpo.HelperError, match="質問"):
        dpo.generate_response("  ", small_run.model, small_run.tokenizer)


def test_finished_run_is_shown_and_another_configuration_is_refused(small_run, small_config, capsys):
    names = ("base_model", "num_pairs", "sft_epochs", "lora_alpha", "lora_r")
    settings = {name: getattr(small_run.config, name) for name in names}
    command = [text for name, value in settings.items() for text in (f"--{name}", str(value))]
    command += ["--output_dir", str(small_run.folder)]
    assert dpo.main(command) == 0
    out = capsys.readouterr().out
    assert "終わっています" in out and f"判定: {small_run.metrics['verdict']}" in out
    assert dpo.main([*command, "--beta", "0.25"]) == 2
    assert "別の output_dir" in capsys.readouterr().err


def test_a_folder_left_by_a_run_killed_at_its_first_breath_is_used(small_config, tmp_path):
    folder = tmp_path / "breath"
    folder.mkdir()
    (folder / ".lock").touch()
    (folder / "config.json.tmp").write_text("{")
    dpo.train(small_config(output_dir=folder)).lock.release()


@pytest.mark.slow
def test_one_process_holds_a_folder_at_a_time(small_config, tmp_path):
    config = small_config(output_dir=tmp_path / "held")
    run = dpo.train(config)
    changed = {f.name: getattr(config, f.name) for f in fields(config) if getattr(config, f.name) != f.default}
    arguments = [text for name, value in changed.items() for text in (f"--{name}", value)]
    other = run_cli(*arguments, cwd=tmp_path)
    assert other.returncode == 2 and "別の実行が使っています" in other.stderr
    run.lock.release()
    assert run_cli(*arguments, cwd=tmp_path).returncode == 0


def test_pairs_that_cannot_be_learned_from_are_refused_before_a_folder_is_made(small_config, tmp_path):
    rows = dpo.build_pairs(60).to_list()
    rows[4]["rejected"] = rows[4]["chosen"]
    with pytest.raises(dpo.HelperError, match="5 件目（計 1 件"):
        dpo.train(small_config(output_dir=tmp_path / "out"), rows)
    assert not (tmp_path / "out").exists()


def test_lengths_the_model_cannot_take_are_refused_in_one_sentence(small_config, small_run):
    with pytest.raises(dpo.HelperError, match="max_length が 512 です。このモデルの上限 256 以下"):
        dpo.load_model(small_config(max_length=512))
    with pytest.raises(dpo.HelperError, match="上限の 128 に達します"):
        dpo.generate_response("とても長い質問です。" * 60, small_run.model, small_run.tokenizer)


def test_a_run_that_ended_in_nan_is_not_blamed_on_the_data(small_run):
    verdict, reason = dpo.judge(small_run.metrics | {"final_loss": math.nan})
    assert verdict == "信号なし" and "NaN" in reason


def test_after_mixed_precision_training_the_model_scores_like_the_saved_one(small_config, monkeypatch):
    """GPU での bf16 の学習を、CPU の bf16 で確かめます。"""
    common = dpo._common_args
    monkeypatch.setattr(dpo, "choose_precision", lambda: ("bf16", "テスト"))
    monkeypatch.setattr(dpo, "_common_args", lambda *args, **options: common(*args, **options) | {"use_cpu": True})
    run = dpo.train(small_config())
    dpo.evaluate_run(run)
    saved = dpo.load_run(dpo.save_run(run))
    texts = run.eval_pairs["prompt"], run.eval_pairs["chosen"]
    before, after = (dpo.answer_logps(each.model, each.tokenizer, *texts)[0] for each in (run, saved))
    assert after == pytest.approx(before, abs=1e-3)
