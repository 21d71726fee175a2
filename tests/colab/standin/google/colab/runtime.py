"""マシンを返す関数のモックです。"""

from google.colab import drive, errors

fails, unassigned = False, []


def unassign():
    if fails:
        raise errors.RuntimeManagementError("Unable to request VM unassignment.")
    unassigned.append(list(drive.flushed))  # 返したときに、Drive への書き込みが済んでいたか
