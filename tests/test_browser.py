"""本物のブラウザー（Chromium）の JupyterLab で、一つ目のノートブックをすべて実行し、見えるものを確かめます。

Chromium がなければ省きます（Debian では apt-get install chromium）。画面の写しは、環境変数 DPO_SCREENSHOTS のフォルダ
か、pytest の一時フォルダに残ります。
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest
from notebooks import place_base
from test_notebooks import FIRST, LIBRARY_NOISE, SETTINGS, with_settings

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="chromium がありません（apt-get install chromium で入ります）"),
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip
LIVE = """[...document.querySelectorAll('.jp-CodeCell')]
    .filter(cell => cell.querySelector('.jp-InputPrompt')?.textContent.includes('*'))
    .flatMap(cell => [...cell.querySelectorAll('.jp-RenderedImage img')].map(image => {
        image.scrollIntoView({block: 'center'}); return image.src }))"""  # 実行中のセルの図
BUSY = ".jp-InputPrompt:text-is('[*]:')"


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory):
    folder = Path(os.environ.get("DPO_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="module")
def lab(offline_runs, tmp_path_factory):
    """一つ目のノートブックと、元のモデルを置いたフォルダで JupyterLab を始め、アドレスを返します。"""
    folder = tmp_path_factory.mktemp("lab")
    place_base(offline_runs[42] / "base", folder / "runs", **SETTINGS)
    nbformat.write(with_settings(**SETTINGS), folder / FIRST)
    for name, value in {
        "notebook-extension/tracker": {"windowingMode": "none"},  # 画面の外のセルも描く
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
    }.items():
        settings = folder / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps(value))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
               "--IdentityProvider.token=", f"--ServerApp.root_dir={folder}",
               f"--LabApp.user_settings_dir={folder}/settings",
               f"--LabApp.workspaces_dir={folder}/workspaces"]  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    with open(folder / "lab.log", "w") as log, subprocess.Popen(command, stdout=log, stderr=log) as server:
        for _ in range(120):
            try:
                urllib.request.urlopen(f"{address}/api").read()
                break
            except OSError:
                time.sleep(0.5)
        yield address
        server.terminate()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


def kernel_state(address, name):
    """ノートブックのカーネルが、サーバーから見て何をしているか（idle、busy など）です。まだなければ None です。"""
    sessions = json.loads(urllib.request.urlopen(f"{address}/api/sessions").read())
    states = [each["kernel"]["execution_state"] for each in sessions if each["path"] == name and each["kernel"]]
    return states[0] if states else None


def wait_for(page, condition, seconds):
    """condition() が真になるまで、ページを動かしながら待ちます。時間切れなら False を返します。"""
    deadline = time.time() + seconds
    while not condition():
        if time.time() > deadline:
            return False
        page.wait_for_timeout(300)
    return True


def run_all(browser, address, name, shot):
    """ノートブックを開いて、メニューから「すべてのセルを実行」し、そのページを返します。"""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.goto(f"{address}/lab/tree/{name}?reset", timeout=120_000)
    page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=120_000)
    page.wait_for_selector(".jp-Notebook-ExecutionIndicator[data-status='idle']", timeout=120_000)
    for _ in range(5):  # カーネルの用意ができる前に押しても、何も始まらない
        wait_for(page, lambda: kernel_state(address, name) == "idle", 60)
        page.click(".lm-MenuBar-itemLabel:text-is('Run')")
        page.click(".lm-Menu-itemLabel:text-is('Run All Cells')")
        if wait_for(page, lambda: kernel_state(address, name) == "busy", 20):
            return page
        page.keyboard.press("Escape")
    page.screenshot(path=shot)
    raise AssertionError("「すべてのセルを実行」が始まりません: " + page.locator("body").inner_text()[:3000])


def check_page(page, shot, figures, tables):
    """誤りも stderr もなく、図と表が描かれ、崩れていないことを確かめ、全体の画面を残します。"""
    outputs = page.locator(".jp-OutputArea-output")
    kinds = [outputs.nth(i).get_attribute("data-mime-type") or "" for i in range(outputs.count())]
    bad = [outputs.nth(i).inner_text() for i, kind in enumerate(kinds) if "error" in kind or "stderr" in kind]
    assert not [text[-1000:] for text in bad if LIBRARY_NOISE not in text]
    assert page.locator(".jp-RenderedImage img").count() >= figures
    assert page.locator(".jp-RenderedHTMLCommon table").count() >= tables
    images = "[...document.querySelectorAll('.jp-RenderedImage img')]"  # 本文のバッジは、外のネットワークにある
    assert page.evaluate(f"{images}.filter(image => !image.naturalWidth).length") == 0
    panels = "[...document.querySelectorAll('.jp-Notebook, .jp-Notebook .jp-WindowedPanel-outer')]"
    height = page.evaluate(f"Math.max(...{panels}.map(panel => panel.scrollHeight))")
    page.set_viewport_size({"width": 1400, "height": min(int(height) + 200, 16_000)})
    page.evaluate(f"{panels}.forEach(panel => {{ panel.scrollTop = 0 }})")
    page.wait_for_timeout(1500)
    page.screenshot(path=shot)
    return page.locator(".jp-Notebook").inner_text()


def test_the_first_notebook_in_a_browser(lab, browser, screenshots):
    page = run_all(browser, lab, FIRST, screenshots / "first.png")
    seen = []

    def finished():
        for image in page.evaluate(LIVE):
            if image not in seen:
                seen.append(image)
                if len(seen) == 3:
                    page.screenshot(path=screenshots / "training.png")
        return not page.locator(BUSY).count() and kernel_state(lab, FIRST) == "idle"

    assert wait_for(page, finished, 600), "10 分で終わりませんでした"
    text = check_page(page, screenshots / "first.png", 2, 4)
    assert len(seen) >= 3, f"学習中に見えた図は {len(seen)} 枚です"
    assert "判定: 学習した" in text
    page.close()
