"""Colab のイメージと同じ版の環境で、ノートブックが、それ一つだけで最後まで動き、速いテストも通ることを確かめます。

    python tests/colab/check.py

requirements.txt の仮想環境に、初めから pandas を読み込んであるカーネルを用意し（Colab と同じです）、ノートブックを空の
フォルダに一つずつ置いて、offline-tiny で実行します（環境変数 DPO_TEST_BASE があれば、その元のモデルを使います）。実験
ノートブックは、夜（環境変数 DPO_ALL_NOTEBOOKS=1）だけです。
google.colab はモック（standin）で、Drive への接続は断られます。終わったあと、環境で変わったものが trl（増える）と
torchao（消える）だけでなければ、失敗です。最後に、同じ環境で、印 colab の付いたテスト（導入、読み込み、学習、続きから、
保存、Drive）を実行します。
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import nbformat
import papermill

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from notebooks import place_base  # noqa: E402

PARAMETERS = {
    "colab_dpo_training.ipynb": {"base_model": "offline-tiny"}, "dpo_training_experiment.ipynb": {"budget": "quick"},
}  # fmt: skip
RUNS = {"colab_dpo_training.ipynb": ("runs", 1000), "dpo_training_experiment.ipynb": ("experiments", 60)}
QUICK = '"quick": ("offline-tiny", 200, '  # 時間を省くため、60 ペアにする
FIGURES = {"colab_dpo_training.ipynb": 4, "dpo_training_experiment.ipynb": 8}  # 少なくとも、これだけの図


def make_environment(folder: Path) -> Path:
    """イメージの版をそろえた仮想環境を作り、その python のパスを返します。"""
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    wanted = HERE / "requirements.txt"
    for packages in (["pip==24.1.2"], ["torch==2.13.0", "-c", wanted], ["--no-deps", "-r", wanted]):
        subprocess.run([python, "-m", "pip", "install", "-q", *packages], check=True)
    return python


def frozen(python: Path) -> dict[str, str]:
    """入っているパッケージと版です。"""
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True)
    return {package["name"]: package["version"] for package in json.loads(listed.stdout)}


def make_kernel(python: Path, folder: Path) -> None:
    """Colab のように、最初のセルの前に pandas（と pyarrow）を読み込むカーネルを登録します。"""
    kernel = folder / "kernels" / "colab"
    kernel.mkdir(parents=True)
    command = [str(python), "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "colab", "language": "python"}))
    startup = folder / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00-colab.py").write_text("import pandas, pyarrow\n")
    os.environ |= {
        "JUPYTER_PATH": str(folder), "IPYTHONDIR": str(folder / "ipython"), "PYTHONPATH": str(HERE / "standin"),
        "COLAB_RELEASE_TAG": "release-colab", "COLAB_STANDIN_DRIVE": "refused", "HF_HUB_OFFLINE": "1",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }  # fmt: skip


def run_alone(notebook: Path, folder: Path):
    """ノートブックを空の folder に写して実行し、(実行したノートブック, 表示された文字) を返します。"""
    folder.mkdir()
    parent, num_pairs = RUNS[notebook.name]
    if base := os.environ.get("DPO_TEST_BASE"):
        place_base(base, folder / parent, base_model="offline-tiny", num_pairs=num_pairs)
    copy, text = folder / notebook.name, notebook.read_text("utf-8")
    assert parent == "runs" or text.count(json.dumps(QUICK)[1:-1]) == 1
    copy.write_text(text.replace(json.dumps(QUICK)[1:-1], json.dumps(QUICK.replace("200", "60"))[1:-1]), "utf-8")
    done = papermill.execute_notebook(
        copy, folder / "out.ipynb", PARAMETERS[notebook.name], kernel_name="colab", cwd=folder, progress_bar=False
    )
    nbformat.validate(nbformat.from_dict(done))
    outputs = [output for cell in done.cells for output in cell.get("outputs", [])]
    noise = [output.text for output in outputs if output.get("name") == "stderr"]
    assert not noise, f"利用者が何もできない表示があります: {noise}"
    figures = sum("image/png" in output.get("data", {}) for output in outputs)
    assert figures >= FIGURES[notebook.name], f"図が {figures} 枚しかありません"
    return done, "".join(output.get("text", "") for output in outputs)


def run_marked_tests(python: Path, environment: dict) -> None:
    """版を変えずにテストの道具を足し、ノートブックと同じように trl を入れて、印 colab のテストを実行します。"""
    wanted = [line for line in (ROOT / "tests" / "requirements.txt").read_text("utf-8").splitlines()
              if not line.startswith(("#", "jupyterlab", "playwright", "ruff"))]  # 印の付いたテストには要らない
    wanted = [line.partition("#")[0].strip() for line in wanted]
    tools = [python, "-m", "pip", "install", "-q", *wanted, "-c", HERE / "requirements.txt"]
    packages = [python, "-c", "import dpo_helpers; print(dpo_helpers.install_packages())"]
    tests = [python, "-m", "pytest", "-n", "2", "--dist", "loadfile", "-m", "colab", "-q"]
    for command in (tools, packages, tests):
        subprocess.run(command, check=True, cwd=ROOT, env=environment)


def main() -> int:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        python, environment = make_environment(folder / "environment"), dict(os.environ)
        make_kernel(python, folder)
        nightly = os.environ.get("DPO_ALL_NOTEBOOKS")
        for notebook in [ROOT / name for name in PARAMETERS if nightly or PARAMETERS[name].get("base_model")]:
            before, started = frozen(python), time.perf_counter()
            done, text = run_alone(notebook, folder / notebook.stem)
            after = frozen(python)
            changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
            install = next(cell for cell in done.cells if cell.metadata.get("id") == "packages")
            seconds, waited = time.perf_counter() - started, install.metadata.papermill.duration
            print(f"{notebook.name}: {seconds:.0f} 秒（パッケージ {waited:.0f} 秒）、変わったもの: {sorted(changed)}")
            assert changed <= {"trl", "torchao"}, "trl と torchao のほかのものが変わりました"
            assert "trl" in after and "torchao" not in after
            assert "Google Drive に接続できませんでした（MessageError" in text and ".zip にまとめました" in text
            subprocess.run([python, "-m", "pip", "uninstall", "-q", "-y", "trl"], check=True)
            subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "torchao==0.10.0"], check=True)
        run_marked_tests(python, environment)
    return 0


if __name__ == "__main__":
    sys.exit(main())
