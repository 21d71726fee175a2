"""本物の名前 `microsoft/DialoGPT-small` の通り道を、実際の大きさで確かめます（重みは乱数で、本物ではありません）。"""

import json
import math

import pytest
import torch
from measure.full_size import CONFIG, NAME, make_full_size

import dpo_helpers as dpo

# 利用者の手元で動く形として仕様にあるものです。一字も変えずに使います。
SNIPPET = """
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base_model = AutoModelForCausalLM.from_pretrained("microsoft/DialoGPT-small")
tokenizer = AutoTokenizer.from_pretrained("microsoft/DialoGPT-small")
model = PeftModel.from_pretrained(base_model, path)
inputs = tokenizer.encode("質問:", return_tensors="pt")
outputs = model.generate(inputs, max_length=100)
answer = tokenizer.decode(outputs[0], skip_special_tokens=True)
"""


@pytest.fixture(scope="module")
def workplace(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    make_full_size(folder)
    return folder


@pytest.fixture(scope="module")
def run(workplace):
    """短い文の 10 ペアで、SFT と DPO を 2 ステップずつ学習し、評価して保存したものです。"""
    pairs = [{"prompt": f"{n}の次は？", "chosen": f"{n + 1}です。", "rejected": "さあ。"} for n in range(10)]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        config = dpo.Config(eval_fraction=0.2, max_length=32, output_dir="out", sft_epochs=1.0, sft_batch_size=4)
        run = dpo.train(config, pairs)
        dpo.evaluate_run(run)
        dpo.save_run(run)
        yield run


def test_the_folder_is_as_the_hub_serves_it(workplace):
    from safetensors import safe_open
    from transformers import AutoTokenizer

    with safe_open(workplace / NAME / "model.safetensors", "pt") as file:
        names = set(file.keys())
        assert file.get_tensor("transformer.wte.weight").dtype == torch.float16
    assert {"transformer.h.0.attn.bias", "transformer.h.11.attn.masked_bias"} <= names
    assert "dtype" not in json.loads((workplace / NAME / "config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(workplace / NAME)
    assert tokenizer.pad_token is None and len(tokenizer) == CONFIG["vocab_size"]
    assert tokenizer("質問: AI")["input_ids"] == [164, 111, 103, 161, 243, 237, 25, 9552]


@pytest.mark.slow
def test_full_size_goes_through_training(run):
    frozen = [p for name, p in run.model.named_parameters() if "lora_" not in name]
    assert sum(p.numel() for p in frozen) == 124_439_808
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    assert run.history[0]["loss/preference"] == pytest.approx(math.log(2), abs=1e-3)
    assert all(math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]) for row in run.history)
    assert len(run.history) == len(dpo.read_lines(run.config.folder / "sft" / "history.jsonl")) - 1 == 2


@pytest.mark.slow
def test_the_saved_adapter_on_the_specified_snippet_is_the_trained_model(run):
    """仕様のとおりに読むと、学習したモデルと同じ確率になります。重みは fp16 で読まれるので、float32 にそろえます。"""
    scope = {"path": "out/adapter"}
    exec(SNIPPET, scope)
    assert scope["answer"].startswith("質問:")
    expected = dpo.pair_logps(run.model, run.tokenizer, run.eval_pairs)
    with dpo.with_adapter(run.model, "base"):
        assert abs(dpo.pair_logps(run.model, run.tokenizer, run.eval_pairs) - expected).max() > 0.05
    found = dpo.pair_logps(scope["model"].float(), scope["tokenizer"], run.eval_pairs)
    assert found == pytest.approx(expected, abs=1e-2)
