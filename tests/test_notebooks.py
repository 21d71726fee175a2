"""ノートブックが、決まった形をしていて、空のフォルダに一つだけ置いても最後まで動くことを確かめます。"""

import hashlib
import json
import statistics
import subprocess
import sys
from dataclasses import asdict, replace

import nbformat
import pytest
from conftest import ROOT
from measure_recipe import place_base
from nbclient import NotebookClient
from notebooks import canonical

import dpo_helpers as dpo

NOTEBOOKS = sorted(path.name for path in ROOT.glob("*.ipynb"))
MODULE = (ROOT / "dpo_helpers.py").read_text("utf-8")


def read(name):
    return nbformat.read(ROOT / name, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


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


def run_helper_cell(folder):
    source = code_cells(read("colab_dpo_training.ipynb"))[0].source
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


class Client(NotebookClient):
    """描き直し（update_display_data）を数える NotebookClient です。"""

    redrawn = 0

    def process_message(self, msg, cell, cell_index):
        self.redrawn += msg["msg_type"] == "update_display_data" and "image/png" in msg["content"]["data"]
        return super().process_message(msg, cell, cell_index)


def set_base_model(notebook, base_model):
    cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    assert cell.source.count('base_model = "microsoft/DialoGPT-small"') == 1
    cell.source = cell.source.replace('base_model = "microsoft/DialoGPT-small"', f'base_model = "{base_model}"')


def check_outputs(notebook):
    """誤りも、利用者が何もできない警告も出さず、図と判定があることを確かめ、画面の文字を返します。"""
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error"]
    assert not [o.text for o in outputs if o.output_type == "stream" and o.name == "stderr"]
    assert sum("image/png" in o.get("data", {}) for o in outputs) >= 4
    texts = [o.get("text", "") + str(o.get("data", {}).get("text/markdown", "")) for o in outputs]
    assert not [text for text in texts if "Warning" in text]
    return "\n".join(texts)


@pytest.fixture(scope="module")
def executed(offline_runs, tmp_path_factory):
    """(フォルダ, 実行した NotebookClient) です。フォルダには、元のモデルだけを用意しておきます。

    空のフォルダからの実行は、Colab と同じ版の環境（tests/colab/check.py）で、papermill で確かめます。
    """
    folder, config = tmp_path_factory.mktemp("colab"), dpo.Config(base_model="offline-tiny")
    run = folder / dpo.run_folder(config, dpo.prepare_pairs(config))
    place_base(offline_runs[42] / "base", replace(config, output_dir=str(run)))
    return folder, execute("colab_dpo_training.ipynb", folder)


def execute(name, folder):
    notebook = read(name)
    set_base_model(notebook, "offline-tiny")
    client = Client(notebook, timeout=600, resources={"metadata": {"path": str(folder)}})
    client.execute()
    return client


@pytest.mark.slow
def test_first_notebook_runs_to_the_end(executed):
    folder, client = executed
    text = check_outputs(client.nb)
    assert "判定: 学習した" in text and "対数確率の差の最大値: 0.000" in text
    (run,) = (path for path in (folder / "runs").iterdir() if path.is_dir())
    assert (run / "adapter" / "adapter_model.safetensors").is_file()
    assert (folder / "runs" / f"{run.name}.zip").is_file()


@pytest.mark.slow
def test_the_picture_is_redrawn_in_place(executed):
    _, client = executed
    assert client.redrawn >= 4
    train = next(cell for cell in client.nb.cells if cell.metadata.id == "train")
    assert sum("image/png" in output.get("data", {}) for output in train.outputs) == 1


@pytest.mark.slow
def test_first_notebook_runs_again_in_place(executed):
    """同じフォルダでもう一度すべて実行すると、学習をやり直さずに同じ結果を表示します。"""
    folder, client = executed
    first = check_outputs(client.nb)
    again = "".join(str(cell.outputs) for cell in code_cells(execute("colab_dpo_training.ipynb", folder).nb))
    table = first[first.index("| 指標") : first.index("| 学習と評価の時間")]
    assert all(line in again for line in table.splitlines())


@pytest.mark.slow
def test_a_settings_file_is_used_and_without_a_gpu_another_model_gets_a_labelled_trial_run(small_config, tmp_path):
    notebook = read("colab_dpo_training.ipynb")
    best = tmp_path / "best_config.json"
    best.write_text(json.dumps(asdict(small_config(beta=0.25, lora_alpha=None, lora_r=None))))
    cell = next(c for c in notebook.cells if "parameters" in c.metadata.get("tags", []))
    cell.source = cell.source.replace('config_file = ""', f'config_file = "{best.name}"')
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert "対だけなので、成績は参考になりません" in check_outputs(notebook)
    (settings,) = (tmp_path / "runs").glob("*/config.json")
    assert dpo.load_config(settings).beta == 0.25
