"""利用者の持ち込むデータが、そのまま読めるか、何が違うかを一文で言われるかのどちらかになることを確かめます。"""

import json
import pickle
import subprocess
import sys

import pytest
from conftest import ROOT
from datasets import Dataset

import dpo_helpers as dpo

ROWS = [{"prompt": f"AI{i}とは？", "chosen": f"技術、その{i}です。", "rejected": "さあ"} for i in range(3)]
READ = [row | {"prompt": f"質問: {row['prompt']}\n回答:"} for row in ROWS]


def csv_text(rows, delimiter=","):
    return "\r\n".join(delimiter.join(row) for row in [list(rows[0]), *(row.values() for row in rows)]) + "\r\n"


def test_all_file_kinds_and_encodings_give_the_same_pairs(tmp_path):
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS)
    (tmp_path / "a.jsonl").write_text(lines + "\n\n", "utf-8")
    (tmp_path / "bom.jsonl").write_text(lines, "utf-8-sig")
    (tmp_path / "a.json").write_text(json.dumps(ROWS), "utf-8")
    (tmp_path / "lines.json").write_text(lines, "utf-8")
    for encoding in ("utf-8", "utf-8-sig", "cp932"):  # Excel の「CSV」は CP932、「CSV UTF-8」は BOM つき
        (tmp_path / f"{encoding}.csv").write_bytes(csv_text(ROWS).encode(encoding))
    (tmp_path / "a.tsv").write_text(csv_text(ROWS, "\t"), "utf-8")
    Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    sources = [ROWS, Dataset.from_list(ROWS), *sorted(tmp_path.iterdir())]
    for source in sources:
        assert dpo.load_pairs(source).to_list() == READ, source
    assert len(sources) == 11


def test_quoted_line_breaks_and_commas_in_csv_survive(tmp_path):
    (tmp_path / "a.csv").write_text('prompt,chosen,rejected\n質問,"一行目\n二行目","a, b"\n', "utf-8")
    assert dpo.load_pairs(tmp_path / "a.csv")[0] == {
        "prompt": "質問: 質問\n回答:", "chosen": "一行目\n二行目", "rejected": "a, b"
    }  # fmt: skip


USER = {"role": "user", "content": "何？"}
GOOD, BAD = ({"role": "assistant", "content": content} for content in ("これ", "さあ"))


@pytest.mark.parametrize(
    ("row", "prompt"),
    [
        ({"instruction": "要約", "input": "長い文", "chosen": "これ", "rejected": "さあ"}, "質問: 要約\n長い文\n回答:"),
        ({"instruction": "要約して", "input": "", "chosen": "これ", "rejected": "さあ"}, "質問: 要約して\n回答:"),
        ({"input": "何？", "chosen": "これ", "rejected": "さあ"}, "質問: 何？\n回答:"),
        ({"system": "簡潔に", "question": "何？", "chosen": "これ", "rejected": "さあ"}, "質問: 簡潔に\n何？\n回答:"),
        ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, "質問: 何？\n回答:"),
        ({"prompt": "何？", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "質問: 何？\n回答:"),
        ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, "質問: 何？\n回答:"),
        ({"messages": [USER], "chosen": GOOD, "rejected": BAD}, "質問: 何？\n回答:"),
        (
            {  # llm-jp/hh-rlhf-12k-ja の形
                "conversations": [
                    {"from": "human", "value": "やあ"}, {"from": "gpt", "value": "はい"},
                    {"from": "human", "value": "何？"},
                ],
                "chosen": "これ", "rejected": "さあ",
            },
            "質問: やあ\n回答: はい\n質問: 何？\n回答:",
        ),
        ({"prompt": "質問: 何？\n回答:", "chosen": "これ", "rejected": "さあ"}, "質問: 何？\n回答:"),
    ],
)  # fmt: skip
def test_columns_of_real_preference_sets_are_understood(row, prompt, tmp_path):
    expected = {"prompt": prompt, "chosen": "これ", "rejected": "さあ"}
    assert dpo.load_pairs([row])[0] == expected
    Dataset.from_list([row]).to_parquet(tmp_path / "a.parquet")  # 入れ子の会話も Parquet から読める
    assert dpo.load_pairs(tmp_path / "a.parquet")[0] == expected


def test_concept_and_flaw_are_kept_and_other_columns_are_not():
    row = ROWS[0] | {"concept": "AI", "flaw": "rude", "score": 3}
    assert dpo.load_pairs([row]).to_list() == [READ[0] | {"concept": "AI", "flaw": "rude"}]


def test_values_from_pandas_and_headers_with_blanks_are_read():
    import numpy as np

    rows = [ROWS[0] | {"concept": float("nan")}, ROWS[1] | {"concept": "AI"}]
    assert dpo.load_pairs(rows)["concept"][:] == [None, "AI"]
    talk = {"Prompt": "何？", " Chosen ": np.array([USER, GOOD]), "Rejected": np.array([USER, BAD])}
    assert dpo.load_pairs([talk])[0] == {"prompt": "質問: 何？\n回答:", "chosen": "これ", "rejected": "さあ"}
    merged = {"prompt": None, "instruction": "何？", "input": float("nan"), "chosen": "これ", "rejected": "さあ"}
    assert dpo.load_pairs([merged])[0]["prompt"] == "質問: 何？\n回答:"


@pytest.mark.parametrize("prompt", ["AIとは？", "質問：AIとは？\n回答：", "質問:AIとは？", " 質問: AIとは？ 回答: "])
def test_every_way_of_writing_a_question_becomes_the_one_used_in_training(prompt):
    assert dpo.as_prompt(prompt) == "質問: AIとは？\n回答:"


def test_languages_told_apart_only_by_a_sign_are_different_questions():
    rows = [{"prompt": f"{name}とは？", "chosen": "a", "rejected": "b"} for name in ("C", "C++", "C#", "C ", "Java")]
    train, held_out = dpo.split_pairs(dpo.load_pairs(rows))
    assert len(train) + len(held_out) == 5 and min(len(train), len(held_out)) >= 2
    assert len({"質問: Cとは？\n回答:", "質問: C とは？\n回答:"} & set(train["prompt"])) != 1  # 空白だけの違い


def test_blank_rows_at_the_end_of_an_excel_file_are_skipped(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,chosen,rejected\nあ,い,う\n,,\n,,\n", "utf-8")
    assert len(dpo.load_pairs(tmp_path / "a.csv")) == 1


def test_built_pairs_pass_through_unchanged():
    pairs = dpo.build_pairs(40)
    assert dpo.load_pairs(pairs) is pairs


REFUSED = {
    "KTO の形": ([{"prompt": "a", "completion": "b", "label": True}], "よしあし（label）"),
    "rejected がない": ([{"prompt": "a", "chosen": "b"}], "rejected の列がありません。今の列は prompt、chosen です"),
    "質問がない": ([{"chosen": "a", "rejected": "b"}], "質問の列（prompt など）がありません"),
    "空のリスト": ([], "行が一つもありません"),
    "数の入った行": ([ROWS[0], ROWS[0] | {"chosen": 12}], "2 行目の chosen が int（12）"),
    "文字列の行": (["a"], "1 行目が str"),
    "利用者の発言で終わる会話": ([{"prompt": "a", "chosen": [USER], "rejected": [USER]}], "で終わっていません"),
    "文字列の会話": ([{"prompt": ["a"], "chosen": "b", "rejected": "c"}], "1 行目の prompt が会話"),
    "壊れた絵文字": ([{"prompt": "a", "chosen": "\ud83d", "rejected": "c"}], "1 行目の chosen に、壊れた文字"),
    "重なった見出し": ([{"prompt": "a", "chosen": "b", " Chosen": "c", "rejected": "d"}], "列の名前が重なっています"),
    "会話の食い違い": (
        [{"chosen": [USER, GOOD], "rejected": [USER | {"content": "別？"}, BAD]}], "1 行目で、chosen と rejected の会話"
    ),
    "空の会話": ([{"prompt": "a", "chosen": [], "rejected": []}], "1 行目の chosen の会話が、回答"),
    "辞書": ({"prompt": ["a"]}, "データが dict です"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_preference_pair_is_refused_with_what_it_is(name):
    source, expected = REFUSED[name]
    with pytest.raises(dpo.HelperError) as error:
        dpo.load_pairs(source)
    assert expected in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("empty.csv", b"", "空です"),
        ("head.csv", b"prompt,chosen,rejected\n", "行が一つもありません"),
        ("broken.jsonl", json.dumps(ROWS[0]).encode() + b'\n{"prompt": "a"\n', "broken.jsonl の 2 行目を JSON"),
        ("ragged.csv", "prompt,chosen,rejected\nあ,い,う\nあ,い\n".encode(), "3 行目で、欄の数が"),
        ("wide.csv", "prompt,chosen,rejected\nあ,い,う,え\n".encode(), "2 行目で、欄の数が"),
        ("open.csv", 'prompt,chosen,rejected\nあ,い,"う\nか,き,く\n'.encode(), "3 行目で、欄の数が見出しと違うか"),
        ("twice.csv", "prompt,chosen,rejected,chosen\nあ,い,う,え\n".encode(), "見出しの名前が重なって"),
        ("comma.json", b'[\n{"prompt": "a"},\n]', "3 行目を JSON として読めません"),
        ("binary.csv", b"\xff\xfe\x00\x81\xff" * 9, "UTF-8 か CP932"),
        ("object.json", b'{"a": 1}', "リストではありません"),
        ("fake.parquet", b"not parquet", "Parquet として読めません"),
        ("pairs.pkl", pickle.dumps(ROWS), "pickle"),
        ("pairs.xlsx", b"PK", "CSV UTF-8"),
    ],
)
def test_unreadable_files_are_named_with_what_is_wrong(name, content, expected, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(dpo.HelperError) as error:
        dpo.load_pairs(tmp_path / name)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_missing_files_and_unknown_names_are_said(tmp_path):
    with pytest.raises(dpo.HelperError, match="nothing.csv がありません"):
        dpo.load_pairs(tmp_path / "nothing.csv")
    with pytest.raises(dpo.HelperError, match="split は"):
        dpo.load_pairs("nobody/nothing:test")


MEMORY = """
import resource, sys
sys.path.insert(0, {root!r})
import dpo_helpers as dpo
dpo.load_pairs([{{"prompt": "a", "chosen": "b", "rejected": "c"}}])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pairs = dpo.load_pairs("big.jsonl")
print(len(pairs), (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_a_hundred_thousand_rows_load_in_flat_memory(tmp_path):
    with (tmp_path / "big.jsonl").open("w", encoding="utf-8") as file:
        for number in range(100_000):
            row = {"prompt": f"{number} とは？", "chosen": "よい" * 100, "rejected": "だめ" * 100}
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
    size = (tmp_path / "big.jsonl").stat().st_size / 2**20
    code = MEMORY.format(root=str(ROOT))
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    count, growth = done.stdout.split()
    assert count == "100000" and size > 100
    assert float(growth) < 0.4 * size, f"{size:.0f} MB のファイルで {growth} MB 増えました"
