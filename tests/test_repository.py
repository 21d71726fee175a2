"""書いてある数と言葉、置いてあるファイル、モジュールの薄さを確かめます。"""

import ast
import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from conftest import ROOT
from measure import readme

import dpo_helpers as dpo

README = (ROOT / "README_COLAB.md").read_text("utf-8")
MODULE = (ROOT / "dpo_helpers.py").read_text("utf-8")
FIRST = ROOT / "colab_dpo_training.ipynb"
NOTEBOOKS = (FIRST, ROOT / "dpo_training_experiment.ipynb")
COMMANDS = (
    "pip install -r requirements.txt -c tests/constraints.txt && "
    "python dpo_helpers.py --base_model offline-tiny --output_dir out",
    "pip install -r requirements.txt -r tests/requirements.txt -c tests/constraints.txt && "
    "python -m pytest -n 2 --dist loadfile",
)
# 利用者に見せる文で使わない言葉です。「対」と「種」は、一字で使ったものだけを見ます。
UNWANTED = re.compile(
    r"(?<![絶相反敵])対(?![応話策象照比立称数談角処等面戦局しす])|(?<![一各変品人業職])種(?![類別々目])|初めの設定|一回の更新"
    r"|一度に計算する対|装置|代役|詰め物|暴れ|区間がまるごと|暗記した|書き終えた|隔たり|言い切れない"
)


def cells(path: Path) -> list[tuple[str, str]]:
    """ノートブックのセルの (種類, 文) です。"""
    return [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(path.read_text("utf-8"))["cells"]]


def user_texts() -> dict[str, str]:
    texts = {"README_COLAB.md": README, "tests/README.md": (ROOT / "tests" / "README.md").read_text("utf-8")}
    for path in NOTEBOOKS:
        texts[path.name] = "\n".join(text for kind, text in cells(path) if kind == "markdown")
    advice = [text for _, text in dpo.AUDIT.values()]
    helps = [field.metadata["help"] for field in fields(dpo.Config)]
    return texts | {"dpo_helpers.py": "\n".join([*dpo.MESSAGES.values(), *advice, *helps])}


def test_ruff_is_satisfied():
    """ノートブックも調べます。"""
    command = [sys.executable, "-m", "ruff", "check", "--line-length", "120", "--select", "E,F,I,UP,B,SIM,C4", "."]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", readme.FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_tables_come_from_the_saved_results(path):
    assert path.read_text("utf-8") == readme.filled(path), "python tests/measure/readme.py で作り直してください。"


def test_other_numbers_come_from_the_saved_results():
    assert "2 コアの CPU で 4〜5 分" in README
    seconds = readme.saved("notebooks")["seconds"]
    assert all(210 <= seconds[name] <= 300 for name in (FIRST.name, "dpo_helpers.py --base_model offline-tiny"))
    assert all(each["largest_loss_difference"] < 1e-3 for each in readme.saved("benchmark")["comparisons"])
    dialogpt = dpo.Config().resolved()
    assert f"SFT を {dialogpt.sft_epochs:g} エポック" in README and f"β {dpo.Config.beta}" in README
    assert f"{len(dpo.read_knowledge())} 概念" in README
    control = readme.saved("control")  # 欠点のある回答を減らすが、作り話に変わり、chrF も少し下がる
    assert control["flawed"]["difference"][2] < 0 and control["chrf"]["difference"][2] < 0
    assert control["near_chosen"]["difference"][1] < 0
    assert control["garbled"]["difference"][1] > 0
    rate = dialogpt.learning_rate * dialogpt.lora_alpha / (2 * dialogpt.lora_r)
    developers = (ROOT / "tests" / "README.md").read_text("utf-8")
    assert rate == pytest.approx(dpo.EQUIVALENT_RATE) == 4e-5 and "学習率が 4e-5 になる" in developers
    assert f"（r {dialogpt.lora_r} で {dialogpt.lora_alpha:g}）" in developers


def test_what_the_base_has_read_is_said_wherever_its_figures_stand():
    shown = "".join(text for _, text in cells(FIRST))
    assert all(dpo.say("tiny_read") in text for text in (README, shown))


def test_readme_has_the_commands_and_is_short():
    assert len(README) <= 9000
    lines = [line.strip() for line in README.splitlines()]
    assert all(command in lines for command in COMMANDS)


def test_unmeasured_is_said_in_one_table():
    lines = README.splitlines()
    found = [i for i, line in enumerate(lines) if "未計測" in line]
    assert found == list(range(found[0], found[-1] + 1)) and all(lines[i].startswith("| ") for i in found)


@pytest.mark.parametrize("name", user_texts())
def test_user_texts_use_the_words_of_the_field(name):
    assert [text[-12:] for text in re.findall(f".{{0,12}}(?:{UNWANTED.pattern})", user_texts()[name])] == []


def only_texts(node) -> bool:
    constants = [n for n in ast.walk(node) if isinstance(n, ast.Constant)]
    kept = (ast.Constant, ast.Tuple, ast.List, ast.Dict, ast.Set, ast.Load)
    inside = [n for n in ast.walk(node) if not isinstance(n, kept)]
    return bool(constants) and not inside and all(isinstance(c.value, str) for c in constants)


def code_lines(tree) -> int:
    """空行、コメント、docstring、文と知識の表を除いた行の数です。"""
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef)) and ast.get_docstring(node) is not None:
            skipped |= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    for node in tree.body:
        long = isinstance(node, (ast.Assign, ast.AnnAssign)) and node.end_lineno - node.lineno > 3
        if long and only_texts(node.value):
            skipped |= set(range(node.lineno, node.end_lineno + 1))
    lines = enumerate(MODULE.splitlines(), 1)
    return sum(bool(line.strip()) and not line.strip().startswith("#") and i not in skipped for i, line in lines)


def test_module_is_thin():
    tree = ast.parse(MODULE)
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert code_lines(tree) <= 1450
    assert len(MODULE.splitlines()) <= 2450
    assert [f.name for f in functions if f.end_lineno - f.lineno + 1 > 45] == []
    assert [f.name for f in functions if len(f.args.args) + len(f.args.kwonlyargs) > 7] == []


def test_first_notebook_reaches_training_soon_and_shows_the_library():
    found = cells(FIRST)
    code = [text for kind, text in found if kind == "code" and "b85decode" not in text]
    for name in ("LoraConfig", "SFTConfig", "DPOConfig", "DPOTrainer"):
        assert any(name in text for text in code), name
    training = next(i for i, (kind, text) in enumerate(found) if kind == "code" and re.search(r"\.train\(", text))
    assert training <= 26
    assert sum(len(text) for kind, text in found[:training] if kind == "markdown") <= 3500


def test_module_uses_no_private_name_of_a_library():
    for node in ast.walk(ast.parse(MODULE)):
        names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self"):
            names.append(node.attr)
        for name in ".".join(names).split("."):
            assert not name.startswith("_") or re.fullmatch("__.*__", name), f"{node.lineno} 行目の {name}"


def test_module_imports_only_the_standard_library():
    """パッケージを入れる前でも import できます。"""
    command = "import sys, dpo_helpers; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {*dpo.PACKAGES, "numpy", "pandas", "pyarrow"} & set(done.stdout.split())


def test_requirements_are_the_packages_of_the_module_and_admit_the_constraints():
    from packaging.requirements import Requirement

    lines = [line for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines() if not line.startswith("#")]
    wanted = {each.name: each.specifier for each in map(Requirement, filter(None, lines))}
    bounds = {name: sorted(map(str, specifier), reverse=True) for name, specifier in wanted.items()}
    assert {name: least for name, (least, _) in bounds.items()} == {n: f">={v}" for n, v in dpo.PACKAGES.items()}
    assert all(re.fullmatch(r"<\d+", most) for _, most in bounds.values())  # 次の大きな版は、確かめてから
    pinned = dict(line.split("==") for line in (ROOT / "tests" / "constraints.txt").read_text().split())
    assert all(specifier.contains(pinned[name]) for name, specifier in wanted.items())


def test_licence_is_mit():
    assert (ROOT / "LICENSE").read_text("utf-8").startswith("MIT License")
    assert "## ライセンス\n\nMIT" in README
