"""利用者の持ち込むデータが、そのまま読めるか、何が違うかを一文で言われるかのどちらかになることを確かめます。"""

import json
import pickle

import numpy as np
import pytest
from datasets import Dataset

import dpo_helpers as dpo

ROWS = [{"prompt": f"AI{i}とは？", "chosen": f"技術、その{i}です。", "rejected": "さあ"} for i in range(3)]
USER = {"role": "user", "content": "何？"}
GOOD, BAD = ({"role": "assistant", "content": content} for content in ("これ", "さあ"))
ANSWERS = {"chosen": "これ", "rejected": "さあ"}
SYSTEM = {"role": "system", "content": "簡潔に"}
TURNS = [{"role": role, "content": text} for role, text in (("user", "あ"), ("assistant", "い"), ("user", "う"))]


def table_text(delimiter=","):
    return "\r\n".join(delimiter.join(row) for row in [list(ROWS[0]), *(row.values() for row in ROWS)]) + "\r\n"


@pytest.mark.colab
def test_all_file_kinds_and_encodings_give_the_same_pairs(tmp_path, monkeypatch):
    lines, table = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS), table_text()
    texts = {"a.jsonl": lines + "\n\n", "bom.jsonl": "\ufeff" + lines, "lines.json": lines, "a.csv": table,
             "a.json": json.dumps(ROWS, indent=1), "bom.csv": "\ufeff" + table, "blank.csv": table + ",,\r\n,,\r\n",
             "wider.csv": table.replace("\r\n", ",,\r\n"), "nested.json": json.dumps({"data": ROWS}, indent=1),
             "columns.json": json.dumps({name: [row[name] for row in ROWS] for name in ROWS[0]}),
             "a.tsv": table_text("\t"), "tab.csv": table_text("\t"), "semicolon.csv": table_text(";")}  # fmt: skip
    for name, text in texts.items():
        (tmp_path / name).write_bytes(text.encode())
    (tmp_path / "excel.csv").write_bytes(table.encode("cp932"))  # Excel の「CSV」。「CSV UTF-8」は BOM つき
    Dataset.from_list(ROWS).to_parquet(tmp_path / "a.parquet")
    monkeypatch.setenv("HOME", str(tmp_path))
    sources = [ROWS, Dataset.from_list(ROWS), *sorted(tmp_path.iterdir()), f" {tmp_path / 'a.tsv'} ", "~/a.tsv"]
    for source in sources:
        assert dpo.load_pairs(source).to_list() == ROWS, source
    assert dpo.load_pairs(dpo.build_pairs(40)).to_list() == dpo.build_pairs(40).to_list()


def test_quotes_line_breaks_and_the_word_na_in_csv_survive(tmp_path):
    (tmp_path / "a.csv").write_text('prompt,chosen,rejected\nNA,"一行目\n二行目、""引用""","a, b"\n', "utf-8")
    expected = {"prompt": "NA", "chosen": '一行目\n二行目、"引用"', "rejected": "a, b"}
    assert dpo.load_pairs(tmp_path / "a.csv").to_list() == [expected]


@pytest.mark.parametrize("lines", [
    ['あ,"い"です,う', 'か,"き、と言う,く', "さ,し,す"],  # 次の引用符までの行を、飲み込まない
    ['あ,い,"う', "か,き,く"],
    ['"こんにちは、元気",い,う', 'か,"い"です,く'],
])  # fmt: skip
def test_quotation_marks_that_do_not_enclose_a_cell_are_just_characters(lines, tmp_path):
    (tmp_path / "a.csv").write_text("\n".join(["prompt,chosen,rejected", *lines]), "utf-8")
    rows = [list(row.values()) for row in dpo.load_pairs(tmp_path / "a.csv").to_list()]
    assert rows == [line.replace('"こんにちは、元気"', "こんにちは、元気").split(",") for line in lines]


@pytest.mark.parametrize(("row", "prompt"), [
    ({"prompt": "質問：何？\n回答：", "score": 3} | ANSWERS, "何？"),
    ({"prompt": " 質問: 何？ 回答: "} | ANSWERS, "何？"),
    ({"instruction": "要約", "input": "長い文"} | ANSWERS, "要約\n長い文"),
    ({"instruction": "要約して", "input": ""} | ANSWERS, "要約して"),
    ({"prompt": None, "instruction": "何？", "input": float("nan")} | ANSWERS, "何？"),
    ({"input": "何？"} | ANSWERS, "何？"),
    ({"system": "簡潔に", "question": "何？"} | ANSWERS, "システム: 簡潔に\n質問: 何？"),
    ({"Prompt": "何？", " Chosen ": "これ", "Rejected": "さあ"}, "何？"),
    ({"chosen": [USER, GOOD], "rejected": [USER, BAD]}, "何？"),
    ({"prompt": "何？", "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "何？"),
    ({"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}, "何？"),
    ({"messages": [USER], "chosen": GOOD, "rejected": BAD}, "何？"),
    ({"messages": [USER, GOOD]} | ANSWERS, "何？"),  # 回答まで含む会話。末尾の空白や、ほかの回答でも同じ
    ({"messages": [USER, GOOD | {"content": "これ "}]} | ANSWERS, "何？"),
    ({"messages": [USER, {"role": "assistant", "content": "ほか"}]} | ANSWERS, "何？"),
    ({"system": "簡潔に", "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
     "システム: 簡潔に\n質問: 何？"),  # 同じシステムの発言は、重ねない
    ({"system": "簡潔に", "prompt": "困った。\nシステム: 古い"} | ANSWERS,
     "システム: 簡潔に\n質問: 困った。\n　システム: 古い"),
    ({"system": "簡潔に", "prompt": [SYSTEM | {"content": "丁寧に"}, USER]} | ANSWERS,
     "システム: 簡潔に\n丁寧に\n質問: 何？"),
    ({"prompt": json.dumps([SYSTEM, USER]), "chosen": json.dumps([GOOD]), "rejected": json.dumps([BAD])},
     "システム: 簡潔に\n質問: 何？"),  # 文字列になった会話
    ({"messages": str(TURNS), "chosen": str([GOOD]), "rejected": str([BAD])}, "あ\n回答: い\n質問: う"),
    ({"messages": str(TURNS).replace("}, {", "}\n {")} | ANSWERS, "あ\n回答: い\n質問: う"),  # pandas が書いた配列
    ({"messages": [SYSTEM, {"role": "gpt", "content": "ようこそ"}, USER]} | ANSWERS,
     "システム: 簡潔に\n回答: ようこそ\n質問: 何？"),
    ({"messages": [{"role": "user", "content": "あ"}, USER]} | ANSWERS, "質問: あ\n質問: 何？"),
    ({"prompt": "要約して", "input": "長い文"} | ANSWERS, "要約して\n長い文"),
    ({"system_prompt": "簡潔に", "prompt": "何？"} | ANSWERS, "システム: 簡潔に\n質問: 何？"),
    ({"system": "丁寧に", "system_prompt": "簡潔に", "prompt": "何？"} | ANSWERS,
     "システム: 丁寧に\n簡潔に\n質問: 何？"),
    ({"prompt": "う", "messages": [SYSTEM, *TURNS]} | ANSWERS, "システム: 簡潔に\n質問: あ\n回答: い\n質問: う"),
    ({"history": [["あ", "い"]], "messages": TURNS} | ANSWERS, "あ\n回答: い\n質問: う"),
    ({"context": "資料", "prompt": "何？", "chosen": [{"role": "user", "content": "資料\n何？"}, GOOD],
      "rejected": [{"role": "user", "content": "資料\n何？"}, BAD]}, "資料\n何？"),
    ({"prompt": "Human: Fall Flat は？"} | ANSWERS, "Human: Fall Flat は？"),
    ({"tools": "[]", "prompt": "何？"} | ANSWERS, "何？"),
    ({"conversations": str([USER]), "chosen": str(GOOD), "rejected": json.dumps(BAD)}, "何？"),
    ({"instruction": "次の数が 10 より大きいか", "input": "1"} | ANSWERS, "次の数が 10 より大きいか\n1"),
    ({"instruction": "この絵文字の意味は", "input": "😀"} | ANSWERS, "この絵文字の意味は\n😀"),
    ({"history": [["C", "はい"]], "prompt": "C はい つ？"} | ANSWERS, "C\n回答: はい\n質問: C はい つ？"),
    ({"prompt": "👍"} | ANSWERS, "👍"),
    *(({"history": history, "prompt": "う"} | ANSWERS, "あ\n回答: い\n質問: う")
      for history in ([["あ", "い"]], ["あ", "い"], TURNS[:2], json.dumps(TURNS[:2]))),
    ({"history": [], "tools": [], "images": None, "prompt": "何？"} | ANSWERS, "何？"),
    ({"history": [["あ", "い"]], "system": "簡潔に", "prompt": "う"} | ANSWERS,
     "システム: 簡潔に\n質問: あ\n回答: い\n質問: う"),
    ({"question": "何？", "context": "資料"} | ANSWERS, "何？\n資料"),
    ({"messages": [USER], "context": "資料"} | ANSWERS, "何？\n資料"),
    ({"prompt": '{"role": "x"} は何？'} | ANSWERS, '{"role": "x"} は何？'),  # 会話ではない
    ({"system": "簡潔に", "prompt": ""} | ANSWERS, ""),  # 質問がないことは、点検が見つける
    ({"instruction": "要約", "input": "長い文", "chosen": [{"role": "user", "content": "要約\n長い文"}, GOOD],
      "rejected": [{"role": "user", "content": "要約\n長い文"}, BAD]}, "要約\n長い文"),
    ({"prompt": [SYSTEM, USER], "chosen": [USER, GOOD], "rejected": [USER, BAD]}, "システム: 簡潔に\n質問: 何？"),
    ({"messages": [SYSTEM, USER]} | ANSWERS, "システム: 簡潔に\n質問: 何？"),
    ({"messages": [{"role": "Developer", "content": "簡潔に"}, {"role": "User", "content": "何？"}]} | ANSWERS,
     "システム: 簡潔に\n質問: 何？"),
    ({"messages": [{"role": "prompter", "content": "何？"}], "chosen": GOOD | {"role": "bot"},
      "rejected": BAD | {"role": "アシスタント"}}, "何？"),
    ({"prompt": "何？", "chosen": [SYSTEM, USER, GOOD], "rejected": [SYSTEM, USER, BAD]},
     "システム: 簡潔に\n質問: 何？"),  # 前の発言は、質問の列にないものも失わない
    ({"prompt": "う", "chosen": [*TURNS, GOOD], "rejected": [*TURNS, BAD]}, "あ\n回答: い\n質問: う"),
    ({"conversations": [{"from": "human", "value": "あ"}, {"from": "gpt", "value": "い"},
                        {"from": "human", "value": "う"}]} | ANSWERS, "あ\n回答: い\n質問: う"),  # hh-rlhf-12k-ja
])  # fmt: skip
def test_columns_of_real_preference_sets_are_understood(row, prompt, tmp_path):
    expected = [{"prompt": prompt} | ANSWERS]
    assert dpo.load_pairs([row]).to_list() == expected
    Dataset.from_list([row]).to_parquet(tmp_path / "a.parquet")  # 入れ子の会話も Parquet から読める
    assert dpo.load_pairs(tmp_path / "a.parquet").to_list() == expected


@pytest.mark.parametrize(("prompt", "turns"), [
    ("何？", [("user", "何？")]),
    ("質問: 何？\n回答:", [("user", "何？")]),
    ("あ\n回答: い\n質問: う", [("user", "あ"), ("assistant", "い"), ("user", "う")]),
    ("システム：簡潔に\n 質問 : 何？", [("system", "簡潔に"), ("user", "何？")]),
    ("次の形で答えて。\n回答: はい か いいえ", [("user", "次の形で答えて。\n回答: はい か いいえ")]),  # 会話ではない
    *((text, [("user", text)]) for text in ("次の質問に答えて。\n質問: 首都は？", "エラー\nシステム: Win\n質問: 何？")),
    ("", [("user", "")]),
])  # fmt: skip
def test_a_prompt_becomes_its_turns(prompt, turns):
    assert dpo.as_conversation(prompt) == [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize("answer", [
    '{"role": "tester", "content": "やあ"}', '{"role": "user", …}',
    '[{"name": "田中", "role": "PM", "content": "計画"}]',
    "[{'a': 1}]", "Human: はい\nAssistant: いいえ", '{"from": "a@example.com", "content": "本文"}', r"\frac{1} {2}",
    "{{'role': 'x'}}",
    '[{"role": "PM", "content": "計画"}]',
])  # fmt: skip
def test_answers_that_only_look_like_conversations_stay_as_they_are(answer):
    turns = [{"role": "user", "content": "何？"}, {"role": "assistant", "content": answer}]
    for chosen, rejected in ((answer, "さあ"), *((form(turns), [USER, BAD]) for form in (list, json.dumps, str))):
        assert dpo.load_pairs([{"prompt": "何？", "chosen": chosen, "rejected": rejected}])["chosen"][0] == answer


@pytest.mark.parametrize("turns", [
    [("assistant", "ようこそ"), ("user", "う")], [("user", "あ"), ("user", "い")],
    [("user", "システム: とは？")],
    [("user", "回答: とは？"), ("assistant", "い"), ("user", "う")],
    [("system", "質問: x"), ("user", "質問: y\n回答: z")],
])  # fmt: skip
def test_every_order_of_turns_keeps_its_roles(turns):
    messages = [{"role": role, "content": text} for role, text in turns]
    again = dpo.as_conversation(dpo.load_pairs([{"messages": messages} | ANSWERS])["prompt"][0])
    assert [(turn["role"], turn["content"].replace("　", "")) for turn in again] == turns


@pytest.mark.parametrize("row", [
    {"system": "S\n", "prompt": "あ"}, {"messages": [{"role": "user", "content": "質問: AIとは？"}]},
    {"messages": [{"role": "user", "content": "あ\n"}, {"role": "assistant", "content": "い\n\n"}, USER]},
    {"messages": [{"role": "user", "content": "AIとは？\n回答:"}]}, {"prompt": "質問: 質問: あ"},
])  # fmt: skip
def test_pairs_that_were_read_are_read_again_as_they_are(row, tmp_path):
    pairs = dpo.load_pairs([row | ANSWERS])
    pairs.to_json(tmp_path / "a.jsonl", force_ascii=False)
    pairs.to_csv(tmp_path / "a.csv", index=False)
    assert pairs.to_list() == dpo.load_pairs(pairs).to_list()
    assert pairs.to_list() == dpo.load_pairs(tmp_path / "a.jsonl").to_list()
    assert pairs.to_list() == dpo.load_pairs(tmp_path / "a.csv").to_list()


@pytest.mark.parametrize(("text", "count"), [
    ('{"tags": ["a"], "prompt": "何？", "chosen": "b", "rejected": "c"}\n' * 2, 2),
    ('{"conversations": ["あ", "い", "う"], "chosen": "b", "rejected": "c"}', 1),
    ('{"data": "hh", "prompt": "何？", "chosen": "b", "rejected": "c"}\n' * 2, 2),
    ('{"version": 1,\n "data": [{"prompt": "何？", "chosen": "b", "rejected": "c"}]}', 1),
    ('{"id": [1, 2], "prompt": ["何？", "誰？"], "chosen": ["b", "b"], "rejected": ["c", "c"]}', 2),
])  # fmt: skip
def test_json_lines_are_told_from_one_whole_json(text, count, tmp_path):
    (tmp_path / "a.json").write_text(text, "utf-8")
    assert len(dpo.load_pairs(tmp_path / "a.json")) == count


def test_one_stray_quotation_mark_leaves_the_other_lines_alone(tmp_path):
    long = "あ" * 140_000
    text = ('"prompt","chosen","rejected"\r\nあ,"彼は""はい""と、言った",う\r\nか,"い"です,く\r\n'
            f'さ,"一行目\r\n二, 行目",す\r\nた,"{long}",つ\r\n')  # fmt: skip
    (tmp_path / "a.csv").write_bytes(text.encode())
    answers = ['彼は"はい"と、言った', '"い"です', "一行目\n二, 行目", long]
    assert dpo.load_pairs(tmp_path / "a.csv")["chosen"][:] == answers


def test_arrays_of_messages_are_understood():
    rows = [{"prompt": np.array(TURNS, object), "chosen": np.array([GOOD], object), "rejected": "さあ"}]
    assert dpo.load_pairs(rows)["prompt"][0] == "あ\n回答: い\n質問: う"


def test_a_conversation_can_be_asked_as_messages(small_run):
    asked = "システム: 簡潔に\n質問: あ\n回答: い\n質問: う"
    answers = [dpo.generate_response(prompt, small_run.model, small_run.tokenizer) for prompt in (
        asked, [SYSTEM, *TURNS], [{"role": "Human", "content": "う"}], "質問: う\n回答:", "う")]  # fmt: skip
    assert answers[0] == answers[1] and answers[2] == answers[3] == answers[4]
    with pytest.raises(dpo.HelperError, match="tool"):
        dpo.generate_response([{"role": "tool", "content": "3"}], small_run.model, small_run.tokenizer)


def test_lines_inside_a_message_that_look_like_turns_stay_inside():
    said = [("system", "答えの形\n回答: 一文"), ("user", "クイズを作って"),
            ("assistant", "はい。\n質問: 首都は？\n回答: 東京"), ("user", "もう一つ")]  # fmt: skip
    messages = [{"role": role, "content": text} for role, text in said]
    (row,) = dpo.load_pairs([{"messages": messages} | ANSWERS])
    turns = [(turn["role"], turn["content"].replace("\n　", "\n")) for turn in dpo.as_conversation(row["prompt"])]
    assert turns == said
    answers = {side: [USER, {"role": "assistant", "content": f"{side}\n質問: 何？"}] for side in ("chosen", "rejected")}
    (row,) = dpo.load_pairs([answers])  # 回答の文は、そのまま
    assert row == {"prompt": "何？", "chosen": "chosen\n質問: 何？", "rejected": "rejected\n質問: 何？"}


def test_empty_cells_of_pandas_are_no_concept():
    rows = [ROWS[0] | {"concept": float("nan")}, ROWS[1] | {"concept": "AI"}]
    assert dpo.load_pairs(rows)["concept"][:] == [None, "AI"]


REFUSED = {
    "KTO の形": ([{"prompt": "a", "completion": "b", "label": True}], ["prompt、completion、label", "chosen（"]),
    "rejected がない": ([{"prompt": "a", "chosen": "b"}], ["1 件目", "prompt、chosen"]),
    "質問がない": ([ANSWERS], ["1 件目", "chosen、rejected", "prompt"]),
    "空のリスト": ([], ["一つもありません"]),
    "数の入った行": ([ROWS[0], ROWS[0] | {"chosen": 12}], ["2 件目", "12"]),
    "文字列の行": ([ROWS[0], "a"], ["2 件目", "str"]),
    "利用者の発言で終わる会話": ([{"prompt": "a", "chosen": [USER], "rejected": [USER]}], ["1 件目", "assistant"]),
    "空の会話": ([{"prompt": "a", "chosen": [], "rejected": []}], ["1 件目", "assistant"]),
    "会話の食い違い": ([{"chosen": [USER, GOOD], "rejected": [BAD]}], ["1 件目", "chosen と rejected"]),
    "壊れた絵文字": ([{"prompt": "a", "chosen": "\ud83d", "rejected": "c"}], ["1 件目", "ud83d"]),
    "壊れた概念": ([ROWS[0] | {"concept": "\ud83d"}], ["1 件目"]),
    "重なった見出し": ([ROWS[0] | {" Chosen": "c"}], ["chosen"]),
    "道具を呼ぶ回答": ([{"messages": [USER, GOOD | {"tool_calls": [{"name": "f"}]}, USER]} | ANSWERS],
                 ["1 件目", "tool_calls"]),
    "画像": ([{"prompt": "何？", "images": ["a.png"]} | ANSWERS], ["1 件目", "images"]),
    "音声": ([{"prompt": "何？", "audios": ["a.wav"]} | ANSWERS], ["1 件目", "audios"]),
    "道具": ([{"prompt": "何？", "tools": [{"name": "f"}]} | ANSWERS], ["1 件目", "tools"]),
    "質問の食い違い": ([{"prompt": "いつ？", "chosen": [USER, GOOD], "rejected": [USER, BAD]}],
                 ["1 件目", "（prompt）"]),
    "中身のない発言": ([{"prompt": [{"role": "user", "content": None}]} | ANSWERS], ["1 件目", "user"]),
    "切れた会話": ([{"prompt": "何？", "chosen": json.dumps([USER, GOOD])[:-4], "rejected": "c"}], ["1 件目", "role"]),
    "回答で終わる質問": ([{"messages": ["あ", "い"]} | ANSWERS], ["1 件目", "user、assistant の順"]),
    "二つの質問": ([{"prompt": "次を解いて", "question": "首都は？"} | ANSWERS], ["1 件目", "prompt、question"]),
    "行ではないもの": (5, ["1 件目", "int"]),
    "知らない役割": ([{"messages": [{"role": "tool", "content": "3"}, USER]} | ANSWERS], ["1 件目", "tool"]),
    "食い違う会話": ([{"prompt": "何？", "chosen": [SYSTEM, GOOD], "rejected": [BAD]}], ["1 件目", "違って"]),
    "役割がリスト": ([{"prompt": "a", "chosen": [GOOD | {"role": ["x"]}], "rejected": "c"}], ["1 件目"]),
}
BROKEN = {
    "empty.csv": (b"", []),
    "head.csv": (b"prompt,chosen,rejected\n", ["一つもありません"]),
    "broken.jsonl": (json.dumps(ROWS[0]).encode() + b'\n{"prompt": "a"\n', ["2 行目", "JSON"]),
    "wide.csv": ("prompt,chosen,rejected\nあ,い,う\nあ,い,う,え\n".encode(), ["3 行目", "見出しより多く"]),
    "null.json": (b'{"data": null}', ["1 件目", "NoneType"]),
    "uneven.json": (b'{"prompt": ["a", "b"], "chosen": ["c"], "rejected": ["d"]}', ["uneven.json", "length"]),
    "twice.csv": ("prompt,chosen,rejected,chosen\nあ,い,う,え\n".encode(), ["chosen、rejected、chosen"]),
    "comma.json": (b'[\n{"prompt": "a"},\n]', ["line 3"]),
    "binary.csv": (b"\xff\xfe\x00\x81\xff" * 9, ["UTF-8", "CP932"]),
    "object.json": (b'{"a": 1}', ["1 件目", "prompt"]),
    "fake.parquet": (b"not parquet", ["Parquet"]),
    "pairs.pkl": (pickle.dumps(ROWS), ["pickle"]),
    "pairs.xlsx": (b"PK", ["CSV UTF-8"]),
}


@pytest.mark.parametrize("name", [*REFUSED, *BROKEN, "nothing.csv", "nobody/nothing:test"])
def test_what_cannot_be_read_is_refused_with_where_and_why(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source, expected = REFUSED.get(name, (name, [name.partition(":")[0]]))
    if name in BROKEN:
        (tmp_path / name).write_bytes(BROKEN[name][0])
        expected = BROKEN[name][1]
    with pytest.raises(dpo.HelperError) as error:
        dpo.load_pairs(source)
    text = str(error.value)
    assert all(fact in text for fact in expected), text
    assert text.endswith("。") and "\n" not in text


def test_a_mistake_in_this_file_is_not_told_as_a_broken_file(tmp_path, monkeypatch):
    code = {}
    exec(compile("def broken(path): return path.nothing", dpo.__file__, "exec"), code)
    monkeypatch.setitem(dpo.READERS, ".csv", code["broken"])
    with pytest.raises(AttributeError, match="nothing"):
        dpo.load_pairs(str(tmp_path / "pairs.csv"))
