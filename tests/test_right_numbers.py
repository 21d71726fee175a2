"""どんなデータとモデルでも、示す数と回答が正しいことを、まちがえていた場合の表で確かめます。"""

import math
import os
import shutil

import numpy as np
import pytest
import torch
from conftest import finish
from safetensors.torch import load_file, save_file

import dpo_helpers as dpo

QUESTIONS = [*(f"{name}とは何ですか？" for name in ("AI", "過学習", "API", "C++")), "もっと詳しく、" * 6 + "教えて？"]


@pytest.fixture(scope="module")
def still(still_base):
    return dpo.load_model(dpo.Config(base_model=str(still_base)))


@pytest.mark.colab
@pytest.mark.parametrize("most", [60, 128, 256])  # 256 は、モデルの位置の上限
def test_an_answer_does_not_depend_on_the_other_questions_of_its_batch(most, still):
    lengths = list(map(len, dpo.prompt_tokens(QUESTIONS, still[1])))
    assert max(lengths) - min(lengths) > 20
    together = dpo.generate_responses(QUESTIONS, *still, most)
    assert together == dpo.generate_responses(QUESTIONS, *still, max(most, 2000 * (most == 256)))  # 位置の上限まで
    assert together == [dpo.generate_responses([question], *still, most)[0] for question in QUESTIONS]
    assert together[::-1] == dpo.generate_responses(QUESTIONS[::-1], *still, most)


OVERRIDDEN = [{"max_new_tokens": 3}, {"max_length": 20}, {"max_new_tokens": 4000}, {"do_sample": True, "top_k": 3}]


@pytest.mark.parametrize("inherited", [
    {"repetition_penalty": 1.8}, {"no_repeat_ngram_size": 2}, {"suppress_tokens": [*range(5, 200)]}, {"num_beams": 3},
    {"bad_words_ids": [[i] for i in range(5, 200)]}, {"encoder_repetition_penalty": 3.0},
    {"begin_suppress_tokens": [*range(5, 1500)]}, {"guidance_scale": 4.0},
    *OVERRIDDEN,
], ids=lambda given: next(iter(given)))  # fmt: skip
def test_generation_settings_of_the_base_do_not_change_our_answers(inherited, small_run, tmp_path):
    """初めの八つは、除かなければ回答を変えること（でなければ、確かめたことにならない）も確かめます。"""
    from transformers import GenerationConfig

    base, tokenizer = dpo.load_model(small_run.config)
    base.save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    expected = dpo.generate_responses(QUESTIONS[:3], base, tokenizer, 60)
    given = GenerationConfig(eos_token_id=tokenizer.eos_token_id, **inherited)
    given.save_pretrained(tmp_path / "base")
    loaded = dpo.load_model(dpo.Config(base_model=str(tmp_path / "base")))
    assert dpo.generate_responses(QUESTIONS[:3], *loaded, 60) == expected
    loaded[0].generation_config = given
    assert (dpo.generate_responses(QUESTIONS[:3], *loaded, 60) == expected) == (inherited in OVERRIDDEN)


FIVE = [{"prompt": f"{i} 番は？", "chosen": f"{i} です。", "rejected": "さあ。"} for i in range(5)]


@pytest.mark.parametrize("settings", [{}, {"num_train_epochs": 3.0}, {"num_train_epochs": 0.01}])
def test_a_few_pairs_are_learned_from_and_not_judged(settings, small_config):
    run = finish(small_config(sft_epochs=0.0, **settings), FIVE)
    assert len(run.history) < 10 and run.history[0]["learning_rate"] == pytest.approx(run.config.learning_rate)
    assert run.history[0]["grad_norm"] > 0 and run.scores["margin"].abs().max() > 0
    assert run.metrics["verdict"] == "判断できない" and "20 ステップ以上" in run.metrics["verdict_reason"]


def test_a_retrained_base_in_the_same_folder_is_another_model(small_base, small_config, tmp_path):
    base = shutil.copytree(small_base, tmp_path / "base")
    config = small_config(base_model=str(base), num_pairs=24)
    run, pairs = finish(config), dpo.prepare_pairs(config)
    assert dpo.is_finished(config, pairs)
    weights = load_file(base / "model.safetensors")
    save_file({name: weight + 0.01 for name, weight in weights.items()}, base / "model.safetensors", {"format": "pt"})
    assert dpo.run_folder(config, pairs) != dpo.run_folder(run.config, run.train_pairs)
    with pytest.raises(dpo.HelperError, match="設定かデータの違う実行"):
        dpo.train(config)
    again = dpo.sweep(config, [{"beta": 0.1}], folder=config.folder.parent, report=str)  # 前の SFT を使い回さない
    assert again["error"][0] is None and again["sft_seconds"][0] != run.metrics["sft_seconds"]


@pytest.mark.colab
def test_a_saved_accelerate_precision_does_not_change_ours(still_base, small_config, monkeypatch):
    config = {"base_model": str(still_base), "num_pairs": 24, "sft_epochs": 0.0}
    expected = dpo.train(small_config(**config))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    run = dpo.train(small_config(**config))
    assert [row["loss"] for row in run.history] == [row["loss"] for row in expected.history]
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "no"


CROWDED = [{"prompt": "同じ質問？", "chosen": f"{i} です。", "rejected": "さあ。"} for i in range(180)]
FEW = [{"prompt": f"質問 {i}？", "chosen": f"{i} です。", "rejected": "さあ。"} for i in range(20)]
PAIRED = [{"prompt": f"質問 {i // 4}？", "chosen": f"{i} です。", "rejected": "さあ。"} for i in range(200)]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("rows", "least", "most"), [
    ([*CROWDED, *FEW], 10, 10), (PAIRED, 28, 30), ([*FEW, *PAIRED], 28, 34), ([*CROWDED[:10], *FEW], 4, 4),
])  # fmt: skip
def test_held_out_pairs_are_the_asked_share_whatever_the_sizes_of_the_groups(rows, least, most, seed):
    pairs = dpo.load_pairs(rows)
    train, held_out = dpo.split_pairs(pairs, 0.15, seed)
    assert least <= len(held_out) <= most and not set(train["prompt"]) & set(held_out["prompt"])


def test_too_many_cut_pairs_stop_the_run_or_lengthen_the_default(small_base, small_config, still, capsys):
    long = [{"prompt": f"{i} 番は？", "chosen": f"{i} です。" * (1 if i % 4 else 13), "rejected": "さあ。"}
            for i in range(40)]  # fmt: skip
    pairs = dpo.load_pairs(long)
    with pytest.raises(dpo.HelperError, match="max_length を [0-9]+ にするか"):
        dpo.train(small_config(max_length=40), long)
    plain = dpo.Config(base_model=str(small_base))
    assert dpo.fit_length(plain, dpo.load_pairs(FIVE)) == plain and not capsys.readouterr().out
    longer = [row | {"chosen": row["chosen"] * (1 if i % 4 else 3)} for i, row in enumerate(long)]
    longest = max(len(ids["prompt_ids"]) + len(ids["chosen_ids"])
                  for ids in dpo.tokenize_pairs(dpo.load_pairs(longer), still[1]))  # fmt: skip
    fitted = dpo.fit_length(plain, dpo.load_pairs(longer))
    assert 128 < longest == fitted.max_length and f"max_length を {longest} に延ばします" in capsys.readouterr().out
    assert dpo.fit_length(dpo.Config(base_model=str(small_base), max_length=64), pairs).max_length == 64


@pytest.mark.parametrize(("rows", "least", "most"), [
    ([{"prompt": "とても長い質問です。" * 25, "chosen": "はい。", "rejected": "さあ。"}], 129, 256),  # 質問が一つ長い
    ([{"prompt": "何？", "chosen": "とても長い回答です。" * 20, "rejected": "さあ。"}], 128, 128),  # 回答が一つ長い
    ([{"prompt": f"{i}？", "chosen": "長すぎる回答です。" * 200, "rejected": "さあ。"} for i in range(20)], 256, 256),
])  # fmt: skip
def test_the_default_length_holds_every_question_within_the_positions_of_the_model(rows, least, most, small_base):
    pairs = dpo.load_pairs([*FIVE * 10, *rows])
    assert least <= dpo.fit_length(dpo.Config(base_model=str(small_base)), pairs, str).max_length <= most


def test_a_mixture_of_experts_logs_its_preference_loss_alone(still, small_config, tmp_path):
    from transformers import MixtralConfig, MixtralForCausalLM

    MixtralForCausalLM(MixtralConfig(
        vocab_size=len(still[1]), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=4, output_router_logits=True, router_aux_loss_coef=10.0,
        eos_token_id=still[1].eos_token_id,
    )).save_pretrained(tmp_path / "base")  # fmt: skip
    still[1].save_pretrained(tmp_path / "base")
    run = dpo.train(small_config(base_model=str(tmp_path / "base"), sft_epochs=0.0, num_pairs=24))
    assert run.history[0]["loss/preference"] == pytest.approx(math.log(2), abs=1e-3)


def test_a_retrained_base_saved_as_bin_is_another_model(small_base, small_config, tmp_path):
    base = shutil.copytree(small_base, tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    (base / "model.safetensors").unlink()
    torch.save(weights, base / "pytorch_model.bin")
    config, pairs = small_config(base_model=str(base)), dpo.load_pairs(FIVE)
    before = dpo.run_folder(config, pairs)
    torch.save({name: weight + 0.01 for name, weight in weights.items()}, base / "pytorch_model.bin")
    assert dpo.run_folder(config, pairs) != before


@pytest.mark.parametrize("facet", [None, "意味", "what"])
def test_a_known_concept_with_an_unknown_facet_is_evaluated_without_kinds(facet, small_run):
    table = dpo.answer_table(dpo.replace(small_run, eval_pairs=small_run.eval_pairs.select(range(2)).map(
        lambda row: row | {"facet": facet})), samples=1)  # fmt: skip
    assert table["dpo_kind"].isna().all() == (facet != "what")


ENGLISH = "Overfitting means memorising the training data."


@pytest.mark.parametrize(("answer", "chosen", "wrong"), [
    ("過学習とは、学習用のデータを覚えすぎることです。", "過学習です。", set()),
    ("", "過学習です。", {"empty", "unreadable"}),
    ("ははははははは", "過学習です。", {"repeats"}), ("I don't know.", "過学習です。", {"unreadable"}),
    (ENGLISH, ENGLISH, set()), ("Over\ufffd\ufffdfitting", ENGLISH, {"unreadable"}), ("", ENGLISH, {"empty"}),
    ("        return 1000000", "        return 1000000", set()),
    ("了解です。" * 4, "はい、わかりました。", {"repeats"}), ("了解です。\n" * 5, "はい。", {"repeats"}),
    ("これは、とても長い文なのに、いつまでも終わらずに続く回答です。" * 3, "はい。", {"repeats"}),
])  # fmt: skip
def test_an_answer_is_broken_by_what_the_chosen_one_is_not(answer, chosen, wrong):
    table = dpo.pd.DataFrame({"chosen": [chosen], "dpo": [answer], "dpo_ended": [True], "dpo_chrf": [0.0],
                              "dpo_kind": [None]})  # fmt: skip
    rates = dpo.answer_rates(table, "dpo")
    found = {name for name in ("empty", "repeats") if rates[name]}
    found |= set() if rates["readable"] else {"unreadable"}
    assert found == wrong and rates["broken"] == bool(wrong)


def test_answers_with_one_fault_each_are_counted_once():
    table = dpo.pd.DataFrame({
        "chosen": ["はい。"] * 4, "dpo": ["はい。", "", "ははははははは", "はい"],
        "dpo_ended": [True, True, True, False], "dpo_chrf": [100.0, 0.0, 30.0, 90.0],
        "dpo_kind": ["near_chosen", "cut_off", "garbled", "cut_off"],
    })  # fmt: skip
    rates = dpo.answer_rates(table, "dpo")
    assert (rates["broken"], rates["near_chosen"], rates["garbled"]) == (0.75, 0.25, 0.25)
    assert rates["flawed"]["cut_off"] == 0.5 and sum(rates["flawed"].values()) == 0.5


def test_ties_count_half_and_the_exact_logistic_loss_is_logged(small_run):
    first = small_run.history[0]
    assert first["rewards/accuracies"] == 0.5 and first["loss/preference"] == pytest.approx(math.log(2), abs=1e-4)
    assert np.isfinite([row["loss/sft"] for row in small_run.history]).all()
