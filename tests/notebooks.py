"""ノートブックを、決まった形に整えて書き直します。dpo_helpers.py を変えたら、必ず実行してください。

    python tests/notebooks.py

最初のコードのセルに、圧縮した dpo_helpers.py を入れ直し、出力と実行番号を消します。形は nbformat 4.0 です。
"""

import base64
import lzma
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import nbformat

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import dpo_helpers as dpo  # noqa: E402

HELPER_CELL = '''\
# @title `dpo_helpers.py` を用意します（自動生成のセルです） {{ display-mode: "form" }}
import base64
import hashlib
import lzma
import pathlib
import sys

packed = "{packed}"  # noqa: E501
text, path = lzma.decompress(base64.b85decode(packed)).decode(), pathlib.Path("dpo_helpers.py")
mark = "# ノートブックが書き出したものです（書き換えたら、この行を消してください）: "
body, _, written = path.read_text("utf-8").rpartition(mark) if path.exists() else ("", "", "")
if path.exists() and hashlib.sha256(body.encode()).hexdigest() != written.strip():
    print("隣にあった dpo_helpers.py を使います（上書きしません）。")
elif body == text:
    print("前に書き出した dpo_helpers.py を使います。")
else:
    path.write_text(f"{{text}}{{mark}}{{hashlib.sha256(text.encode()).hexdigest()}}\\n", "utf-8")
    print("dpo_helpers.py を" + ("新しいものに置き換えました。" if body else "書き出しました。"))
sys.modules.pop("dpo_helpers", None)  # 実行し直したときも、今のファイルを読む'''


def helper_cell(module: str) -> str:
    """dpo_helpers.py の中身を圧縮して収めた、最初のコードのセルです。"""
    packed = base64.b85encode(lzma.compress(module.encode(), preset=9 | lzma.PRESET_EXTREME)).decode()
    return HELPER_CELL.format(packed=packed)


def canonical(notebook, module: str) -> str:
    """決まった形の JSON です。セルの番号（id）は、4.0 では metadata に置きます。"""
    notebook.nbformat, notebook.nbformat_minor = 4, 0
    notebook.metadata = nbformat.from_dict({
        "accelerator": "GPU",
        "colab": {"gpuType": "T4", "provenance": [], "toc_visible": True},
        "kernelspec": {"display_name": "Python 3", "name": "python3"},
        "language_info": {"name": "python"},
    })  # fmt: skip
    for cell in notebook.cells:
        name = cell.pop("id", None) or cell.metadata.id
        kept = {key: cell.metadata[key] for key in ("cellView", "tags") if cell.metadata.get(key)}
        cell.metadata = nbformat.from_dict({"id": cell.metadata.get("id", name)} | kept)
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if cell.metadata.id == "helper":
            cell.source = helper_cell(module)
    nbformat.validate(notebook)
    return nbformat.writes(notebook, version=4) + "\n"


def place_base(base: Path, folder: Path, **settings) -> None:
    """settings の実行が folder の下に作る結果のフォルダに、できあがった元のモデルを置き、作る時間を省きます。"""
    config = dpo.Config(**settings)
    pairs = dpo.prepare_pairs(config)
    config = replace(config, output_dir=dpo.run_folder(config, pairs, folder))
    dpo.claim_folder(config, pairs)
    shutil.copytree(base, config.folder / "base")


def main() -> None:
    module = (ROOT / "dpo_helpers.py").read_text("utf-8")
    for path in sorted(ROOT.glob("*.ipynb")):
        path.write_text(canonical(nbformat.read(path, as_version=4), module), encoding="utf-8")


if __name__ == "__main__":
    main()
