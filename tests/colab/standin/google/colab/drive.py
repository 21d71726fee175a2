"""Google Drive のモックです。behaviour は mounted・refused・timed_out・unsupported・not_empty・flush_failed です。"""

import os
from pathlib import Path

from google.colab import _message

behaviour = os.environ.get("COLAB_STANDIN_DRIVE", "mounted")
flushed = []


def mount(mountpoint, force_remount=False, timeout_ms=120000, readonly=False):
    if behaviour == "refused":
        raise _message.MessageError("Error: credential propagation was unsuccessful")
    if behaviour == "timed_out":
        raise ValueError(
            "mount failed: timeout during initial read of root folder; for more info: "
            "https://research.google.com/colaboratory/faq.html#drive-timeout"
        )
    if behaviour == "unsupported":
        raise NotImplementedError("Mounting drive is unsupported in this environment. Use PyDrive2 instead.")
    if behaviour == "not_empty":
        raise ValueError("Mountpoint must not already contain files")
    (Path(mountpoint) / "MyDrive").mkdir(parents=True, exist_ok=True)
    print(f"Mounted at {mountpoint}")


def flush_and_unmount(timeout_ms=24 * 60 * 60 * 1000):
    if behaviour == "flush_failed":
        raise ValueError("flush_and_unmount failed")
    flushed.append(True)
