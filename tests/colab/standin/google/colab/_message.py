"""画面（フロントエンド）とのやり取りの例外です。"""

from google.colab import errors


class MessageError(errors.Error):
    pass
