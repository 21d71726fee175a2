"""ノートブックが、決まった形をしていて、空のフォルダに一つだけ置いても最後まで動くことを確かめます。"""

import ast
import hashlib
import json
import math
import re
import shutil
import statistics
import subprocess
import sys
from dataclasses import asdict
from unittest import mock

import nbformat
import peft
import pytest
import trl
from conftest import ROOT, adapter_difference, finish
from nbclient import NotebookClient
from notebooks import canonical, place_base

import dpo_helpers as dpo

FIRST = "colab_dpo_training.ipynb"
SETTINGS = {"base_model": "offline-tiny", "num_pairs": 400}
NOTEBOOKS = sorted(path.name for path in ROOT.glob("*.ipynb"))
MODULE = (ROOT / "dpo_helpers.py").read_text("utf-8")
LIBRARY_NOISE = "`is_gradient_checkpointing` is deprecated"  # 最新の Transformers で、PEFT の呼び出しが出す


def read(name):
    return nbformat.read(ROOT / name, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def cell_of(notebook, name):
    return next(cell for cell in notebook.cells if cell.metadata.id == name)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_in_canonical_form_with_the_current_module(name):
    text = (ROOT / name).read_text("utf-8")
    assert text == canonical(read(name), MODULE), "python tests/notebooks.py を実行してください"
    notebook = read(name)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 0)
    assert notebook.metadata.accelerator == "GPU" and notebook.metadata.colab.gpuType == "T4"
    assert all(not cell.outputs and cell.execution_count is None for cell in code_cells(notebook))


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_cells_are_short_and_explained(name):
    notebook = read(name)
    lengths = [len(c.source.splitlines()) for c in code_cells(notebook) if c.metadata.id != "helper"]
    assert statistics.median(lengths) <= 8 and max(lengths) <= 25
    kinds = "".join(cell.cell_type[0] for cell in notebook.cells)
    assert "ccc" not in kinds and kinds.startswith("m")
    headings = [line for c in notebook.cells if c.cell_type == "markdown" for line in c.source.splitlines()]
    assert sum(line.startswith("# ") for line in headings) == 1
    assert len({cell.metadata.id for cell in notebook.cells}) == len(notebook.cells)


def shown_object(notebook, cell_name, class_name, **names):
    """セルに書かれた class_name(…) を、そのまま作ったものです。"""
    tree = ast.parse(cell_of(notebook, cell_name).source)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    (call,) = (node for node in calls if getattr(node.func, "id", "") == class_name)
    return eval(ast.unparse(call), {"dpo": dpo, class_name: getattr(trl, class_name, None) or peft.LoraConfig, **names})


@pytest.mark.colab
def test_the_first_notebook_shows_the_objects_that_the_command_line_trains_with(small_config, monkeypatch):
    notebook, config = read(FIRST), small_config(sft_epochs=2.0, sft_weight=8.0).resolved()
    base, _ = dpo.load_model(config)
    names = {"config": config, "base": base, "batch_size": 2, "rows": range(300)}
    assert shown_object(notebook, "lora", "LoraConfig", **names).to_dict() == dpo.lora_config(config, base).to_dict()
    for cell, train in (("sft", dpo.train_sft), ("dpo", dpo.train_dpo)):
        made, name = [], f"{cell.upper()}Trainer"
        monkeypatch.setattr(trl, name, lambda model, args, made=made, **options: made.append(args) or mock.MagicMock())
        monkeypatch.setattr(dpo, "with_terms", lambda trainer: trainer)
        train(2, config, None, None, dpo.build_pairs(300))
        theirs = shown_object(notebook, cell, f"{cell.upper()}Config", **names)
        assert theirs.to_dict() == made[0].to_dict() and theirs.gradient_accumulation_steps == 2


def run_helper_cell(folder):
    source = code_cells(read(FIRST))[0].source
    done = subprocess.run([sys.executable, "-c", source], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout


def test_helper_cell_writes_the_module_and_never_overwrites_somebody_elses(tmp_path):
    helper = tmp_path / "dpo_helpers.py"
    assert "書き出しました" in run_helper_cell(tmp_path)
    written = helper.read_text("utf-8")
    assert written.startswith(MODULE) and len(written[len(MODULE) :].splitlines()) == 1
    assert "前に書き出した" in run_helper_cell(tmp_path)
    helper.write_text("# 自分で書いたもの\n", "utf-8")
    assert "上書きしません" in run_helper_cell(tmp_path)
    assert helper.read_text("utf-8") == "# 自分で書いたもの\n"
    helper.write_text(written.replace("DPO", "ＤＰＯ", 1), "utf-8")
    assert "上書きしません" in run_helper_cell(tmp_path)  # 書き出したあとで、手を入れたもの
    older = "# 前の版\n"
    mark = written[len(MODULE) :].rpartition(": ")[0] + ": "
    helper.write_text(f"{older}{mark}{hashlib.sha256(older.encode()).hexdigest()}\n", "utf-8")
    assert "置き換えました" in run_helper_cell(tmp_path)
    assert helper.read_text("utf-8") == written


def check_outputs(notebook):
    """誤りも、利用者が何もできない警告も出さず、図と判定があることを確かめ、画面の文字を返します。"""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    noise = [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    assert not [text for text in noise if LIBRARY_NOISE not in text]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 2
    return "\n".join(o.get("text", "") + str(o.get("data", {}).get("text/markdown", "")) for o in outputs)


def with_settings(**values):
    """一つ目のノートブックの、フォームの値を書き換えたものです。"""
    notebook = read(FIRST)
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    for name, value in values.items():
        cell.source, changed = re.subn(rf"^{name} = .*", f"{name} = {value!r}", cell.source, flags=re.MULTILINE)
        assert changed == 1
    return notebook


@pytest.fixture(scope="module")
def executed(offline_runs, tmp_path_factory):
    """(フォルダ, 実行したノートブック) です。空のフォルダからの実行は、tests/colab/check.py が確かめます。"""
    folder = tmp_path_factory.mktemp("colab")
    place_base(offline_runs[42] / "base", folder / "runs", **SETTINGS)
    return folder, execute(folder)


def execute(folder):
    notebook = with_settings(**SETTINGS)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(folder)}}).execute()
    return notebook


@pytest.mark.slow
def test_first_notebook_runs_to_the_end_and_again_in_place(executed):
    """もう一度すべて実行すると、学習をやり直さずに同じ結果を表示します。"""
    folder, notebook = executed
    text = check_outputs(notebook)
    assert "判定: 学習した" in text and "対数確率の差の最大値: 0.000" in text and "損失 0.6931" in text
    (run,) = (path for path in (folder / "runs").iterdir() if path.is_dir())
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    assert (folder / "runs" / f"{run.name}.zip").is_file()
    again = check_outputs(execute(folder))
    table = text[text.index("| 指標") : text.index("| メモリの最大値")]
    assert all(line in again for line in table.splitlines())


def test_a_settings_file_is_used(small_config, tmp_path):
    best, names = tmp_path / "best_config.json", {"dpo": dpo, "drive_folder": None}
    best.write_text(json.dumps(asdict(small_config(beta=0.25, lora_alpha=None, lora_r=None))))
    notebook = with_settings(config_file=str(best), beta=1.0)
    for name in ("settings", "config"):
        exec(cell_of(notebook, name).source, names)
    assert names["config"].beta == 0.25 and names["config"].base_model == small_config().base_model


def test_another_length_reaches_every_cell(small_config, tmp_path, capsys):
    """既定の 128 トークンより長い質問も、設定した max_length なら、学習の前から自分の質問まで使えます。"""
    questions = [f"{i} 番は？" + "と思いますか？" * 28 for i in range(40)]
    rows = [{"prompt": each, "chosen": f"{each[:4]}です。", "rejected": "さあ。"} for each in questions]
    config, pairs = small_config(max_length=200), dpo.load_pairs(rows)
    run = finish(config, rows)
    assert min(map(len, dpo.prompt_tokens(pairs["prompt"][:], run.tokenizer))) > 128
    names = {"dpo": dpo, "config": run.config, "run": run, "model": run.model, "tokenizer": run.tokenizer,
             "eval_pairs": run.eval_pairs, "pairs": pairs}  # fmt: skip
    for name in ("load", "before", "ask", "own", "save"):
        source = cell_of(read(FIRST), name).source
        exec(source.replace("機械学習の注意点を教えてください。", rows[0]["prompt"]), names)
    assert "正しく保存できています。" in capsys.readouterr().out


def test_own_question_goes_on_to_a_second_turn(small_run, capsys):
    names, asked = {"config": small_run.config}, []
    names["generate_response"] = lambda talk, max_length=56: asked.append([*talk]) or dpo.generate_response(
        talk, small_run.model, small_run.tokenizer, max_length
    )
    source = cell_of(read(FIRST), "own").source
    exec(source, names)
    assert len(asked) == 1
    exec(source.replace('next_question = ""', 'next_question = "ほかには？"'), names)
    assert [turn["role"] for turn in asked[-1]] == ["user", "assistant", "user"]
    assert len(asked) == 3 and asked[-1][-1]["content"] == "ほかには？"


def test_the_report_and_the_merged_model_come_from_the_run(small_run, tmp_path, monkeypatch, capsys):
    from IPython.display import Markdown

    folder = tmp_path / "run"
    shutil.copytree(small_run.config.folder, folder)
    names = {"dpo": dpo, "metrics": small_run.metrics, "config": small_run.config, "folder": folder, "run": small_run,
             "Markdown": Markdown, "drive_folder": None}  # fmt: skip
    exec(cell_of(read(FIRST), "report").source, names)
    rows = (folder / "report.md").read_text("utf-8").splitlines()
    values = {name.strip(): value.strip() for _, name, _, value, _ in (row.split("|") for row in rows)}
    metrics, seconds = small_run.metrics, ("sft_seconds", "train_seconds", "evaluate_seconds")
    assert values["最初の選好の損失"] == f"{metrics['first_loss']:.3f}" and "CPU" in values["環境"]
    assert values["SFT、DPO、評価の秒数"] == "、".join(f"{metrics[name]:.0f}" for name in seconds)
    assert values["検証の正解率"].startswith(f"{metrics['accuracy_after']:.1%}（") and len(values) == 9
    exec(cell_of(read(FIRST), "merge").source.replace("merge = False", "merge = True"), names)
    assert (folder / "merged" / "model.safetensors").is_file() and "差の最大値: 0.000" in capsys.readouterr().out


def test_watching_the_answers_changes_no_weight_and_keeps_them(small_config, capsys):
    pictures, runs = [], {}
    for name in ("alone", "watched"):
        config = small_config(num_pairs=120).resolved()
        model, tokenizer = dpo.load_model(config)
        names = {"dpo": dpo, "config": config, "tokenizer": tokenizer, "questions": ["AIとは？", "機械学習とは？"],
                 "drive_folder": None}  # fmt: skip
        for cell in ("watch", "show"):
            exec(cell_of(read(FIRST), cell).source, names)
        names["recording"].seen = 0
        names["dpo"] = mock.MagicMock(wraps=dpo, live_picture=lambda text, *history: pictures.append(text))
        watching = {"callbacks": [names["Watch"]()], "show": names["show"]} if name == "watched" else {}
        runs[name] = finish(config, base=(model, tokenizer), **watching)
    assert adapter_difference(*(run.config.folder for run in runs.values())) == 0
    assert [row["loss"] for row in runs["alone"].history] == [row["loss"] for row in runs["watched"].history]
    assert names["recording"].seen > 0
    saved = dpo.read_lines(runs["watched"].config.folder / "samples.jsonl")
    steps, every = len(runs["watched"].history), math.ceil(len(runs["watched"].history) / 5)
    asked = [("SFT", 0), *(("DPO", step) for step in (*range(0, steps, every), steps))]
    assert [(row["学習"], row["ステップ"]) for row in saved] == asked and len(asked) == 7
    last = dpo.generate_response("AIとは？", runs["watched"].model, tokenizer, config.max_length)
    assert saved[-1]["AIとは？"] == last and f"今: {last}" in pictures[-1] and "DPO" in pictures[-1]
    exec(cell_of(read(FIRST), "samples").source, {"dpo": dpo, "pd": names["pd"], "samples": saved})
