"""本物の名前 `microsoft/DialoGPT-small` の通り道を、実際の大きさで確かめます（重みは乱数で、本物ではありません）。"""

import json
import math

import pytest
import torch
from full_size import CONFIG, NAME, make_full_size

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
    """SFT を 2 回、DPO を 2 回更新し、評価して保存したものです。"""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workplace)
        config = dpo.Config(num_pairs=20, sft_epochs=0.4, num_train_epochs=0.4, output_dir="out")
        phases = []
        run = dpo.train(config, watch=lambda status, rows: phases.append((status["phase"], status["steps"])))
        assert phases == [("SFT", 2)] * 2 + [("DPO", 2)] * 2
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
    assert run.model.get_base_model().num_parameters() - sum(
        p.numel() for name, p in run.model.named_parameters() if "lora_" in name
    ) == pytest.approx(124_439_808)
    assert {p.dtype for p in run.model.parameters()} == {torch.float32}
    assert run.history[0]["loss/preference"] == pytest.approx(math.log(2), abs=1e-3)
    assert all(math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]) for row in run.history)


@pytest.mark.slow
def test_saved_full_size_run_is_the_trained_model(run):
    saved = dpo.load_run(run.folder)
    texts = run.eval_pairs["prompt"], run.eval_pairs["chosen"]
    before, after = (dpo.answer_logps(each.model, each.tokenizer, *texts)[0] for each in (run, saved))
    assert after == pytest.approx(before, abs=1e-2)
    assert isinstance(dpo.generate_response("質問: AIとは何ですか？", saved.model, saved.tokenizer), str)


@pytest.mark.slow
def test_the_specified_snippet_works_to_the_letter(run, workplace):
    """学習したモデルと同じ確率になります。重みは fp16 のまま読まれるので、同じ float32 の計算にそろえて比べます。"""
    scope = {"path": "out/adapter"}
    exec(SNIPPET, scope)
    assert scope["answer"].startswith("質問:")
    texts = run.eval_pairs["prompt"], run.eval_pairs["chosen"]
    expected, _ = dpo.answer_logps(run.model, run.tokenizer, *texts)
    found, _ = dpo.answer_logps(scope["model"].float(), scope["tokenizer"], *texts)
    assert found == pytest.approx(expected, abs=1e-2)
