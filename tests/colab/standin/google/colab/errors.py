"""共通の例外です。"""


class Error(Exception):
    pass


class RuntimeManagementError(Error):
    pass
