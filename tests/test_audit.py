"""対の点検が、植え付けた誤りを見つけ、きれいな対では何も言い過ぎないことを確かめます。"""

import random
import time

import pytest
from conftest import SEEDS
from datasets import Dataset
from full_size import genuine_vocabulary
from transformers import GPT2Tokenizer

import dpo_helpers as dpo


@pytest.fixture(scope="module")
def tokenizer():
    """本物の GPT-2 の語彙です（DialoGPT と同じもの）。"""
    vocab, merges = map(str, genuine_vocabulary())
    return GPT2Tokenizer(vocab=vocab, merges=merges)


@pytest.fixture(scope="module")
def rows():
    return dpo.build_pairs(1000).to_list()


def question(row):
    return row["prompt"].removeprefix("質問: ").removesuffix("\n回答:")


def leak_into_the_other_side(rows, picked):
    train, held_out = dpo.split_pairs(Dataset.from_list(rows))
    for i, source in zip(picked, train, strict=False):
        rows[i] |= {"prompt": source["prompt"].replace("？", "?"), "concept": held_out["concept"][0]}


PLANTED = {
    "empty": lambda row, rows: {"rejected": " \n"},
    "equal": lambda row, rows: {"rejected": row["chosen"].replace("。", "。 ").replace("1", "１")},
    "no_room": lambda row, rows: {"prompt": f"質問: {question(row) * 20}\n回答:"},
    "duplicate": lambda row, rows: rows[-1],
    "contradiction": lambda row, rows: rows[-1] | {"chosen": rows[-1]["rejected"], "rejected": rows[-1]["chosen"]},
    "prompt_in_answer": lambda row, rows: {"chosen": question(row) + row["chosen"]},
    "no_japanese": lambda row, rows: {"chosen": "It is a technique."},
    "garbled": lambda row, rows: {"chosen": row["chosen"].encode().decode("cp932", "replace")},
    "over_long": lambda row, rows: {"rejected": row["rejected"] * 5},
    "boundary": lambda row, rows: {"prompt": row["prompt"] + " "},
}


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
@pytest.mark.parametrize("fault", PLANTED)
def test_planted_faults_are_found(fault, share, rows, tokenizer):
    rows = [dict(row) for row in rows]
    picked = random.Random(1).sample(range(999), round(share * 1000))
    for i in picked:
        rows[i] |= PLANTED[fault](rows[i], rows)
    found = {f["check"]: f for f in dpo.audit_pairs(Dataset.from_list(rows), tokenizer, 128)}
    assert fault in found
    assert found[fault]["count"] >= (0.5 if fault == "boundary" else 0.9) * len(picked)  # 空白は、次の字により溶け込む
    assert found[fault]["severity"] == dpo.AUDIT[fault][0]
    assert found[fault]["share"] == found[fault]["count"] / 1000
    if fault not in ("duplicate", "contradiction"):
        assert set(found[fault]["rows"]) <= set(picked)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.2])
def test_leaks_are_found(share, rows, tokenizer):
    rows = [dict(row) for row in rows]
    leak_into_the_other_side(rows, random.Random(1).sample(range(1000), round(share * 1000)))
    found = {f["check"]: f for f in dpo.audit_pairs(Dataset.from_list(rows), tokenizer, 128)}
    assert found["leak"]["count"] > 0 and found["leak"]["severity"] == "warning"


@pytest.mark.parametrize("rule", ["length_rule", "ngram_rule"])
def test_pairs_that_a_trivial_rule_solves_are_said_to_be_so(rule, rows, tokenizer):
    easy = {
        "length_rule": lambda row: {"rejected": row["chosen"][:9]},
        "ngram_rule": lambda row: {"rejected": "知りません。" + row["chosen"]},
    }
    pairs = Dataset.from_list([row | easy[rule](row) for row in rows])
    (found,) = (f for f in dpo.audit_pairs(pairs, tokenizer, 256) if f["check"] == rule)
    assert found["severity"] == "warning" and "内容を学んだとは言えません" in dpo.finding_text(found)


@pytest.mark.parametrize("number", [1000, 3606])  # 3606 は、知識表から作れる最大の数
@pytest.mark.parametrize("seed", SEEDS)
def test_generated_pairs_are_clean(seed, number, tokenizer):
    pairs = dpo.build_pairs(number, seed)
    found = dpo.audit_pairs(pairs, tokenizer, 128, seed=seed)
    assert {f["check"]: f["severity"] for f in found} == {"length_rule": "info", "ngram_rule": "info"}
    values = {f["check"]: f["value"] for f in found}
    assert 0.45 <= values["length_rule"] <= 0.55 and 0.6 <= values["ngram_rule"] <= 0.8  # README の「7 割ほど」


def test_a_tokenizer_that_loses_characters_is_named(rows):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = {letter: i for i, letter in enumerate(["[UNK]", "[EOS]", *sorted(set("".join(map(question, rows))))])}
    pieces = Tokenizer(models.WordLevel(letters, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    lossy = PreTrainedTokenizerFast(tokenizer_object=pieces, unk_token="[UNK]", eos_token="[EOS]")
    found = {f["check"]: f for f in dpo.audit_pairs(Dataset.from_list(rows), lossy, 999)}
    assert found["round_trip"]["count"] > 500


def test_over_long_pairs_come_with_the_length_that_would_hold_them(rows, tokenizer):
    pairs = Dataset.from_list(rows)
    (found,) = (f for f in dpo.audit_pairs(pairs, tokenizer, 100) if f["check"] == "over_long")
    longest = max(map(max, dpo.token_lengths(pairs, tokenizer).values()))
    assert f"max_length が {longest} なら" in found["advice"]
    assert "over_long" not in {f["check"] for f in dpo.audit_pairs(pairs, tokenizer, longest)}


def test_findings_are_sentences_and_a_table_with_errors_first(rows, tokenizer):
    rows = [dict(row) for row in rows]
    rows[0]["chosen"], rows[6] = "", rows[7]
    table = dpo.audit_table(dpo.audit_pairs(Dataset.from_list(rows), tokenizer, 128))
    assert list(table["重さ"]) == ["誤り", "注意", "参考", "参考"]
    assert table["見つけたこと"][0].startswith("1 件目（計 1 件、0.1%）: 空の欄があります。")


def test_repair_says_everything_it_changed_and_changes_nothing_else(rows):
    rows = [dict(row) for row in rows[:100]]
    rows[3]["chosen"] = f"  {rows[3]['chosen']} \r\n"
    rows[5]["rejected"] = "か\u3099" + rows[5]["rejected"]  # 濁点が別の文字になった「が」
    rows[9] = dict(rows[8])
    pairs, changes = dpo.repair(Dataset.from_list(rows))
    assert len(pairs) == 99 and list(changes["件目"]) == [4, 6, 10]
    assert "9 件目と同じ" in changes["変えたこと"][2]
    assert pairs[3]["chosen"] == rows[3]["chosen"].strip() and pairs[5]["rejected"].startswith("が")
    again, nothing = dpo.repair(pairs)
    assert again.to_list() == pairs.to_list() and nothing.empty
    untouched = [i for i in range(100) if i not in (3, 5, 9)]
    assert [pairs[i - (i > 9)] for i in untouched] == [rows[i] for i in untouched]


@pytest.mark.slow
def test_a_hundred_thousand_pairs_are_audited_in_bounded_time(rows, tokenizer, tmp_path):
    many = [row | {"concept": f"{row['concept']}{k}", "prompt": row["prompt"].replace("質問: ", f"質問: {k}番。")}
            for k in range(100) for row in rows]  # fmt: skip
    pairs, started = Dataset.from_list(many), time.perf_counter()
    found = dpo.audit_pairs(pairs, tokenizer, 140)
    assert time.perf_counter() - started < 900  # ゆるい見張り。測った値は 1 分ほど
    assert {f["check"] for f in found} == {"length_rule", "ngram_rule"}
