"""シークレットのモックです。"""

from google.colab import errors

secrets, allowed, times_out = {}, True, False


class NotebookAccessError(Exception):
    def __init__(self, key):
        super().__init__(f"Notebook does not have access to secret {key}")


class SecretNotFoundError(errors.Error):
    def __init__(self, key):
        super().__init__(f"Secret {key} does not exist.")


class TimeoutException(errors.Error):
    def __init__(self, key):
        super().__init__(f"Requesting secret {key} timed out. Secrets can only be fetched from the Colab UI.")


def get(key):
    if times_out:
        raise TimeoutException(key)
    if key not in secrets:
        raise SecretNotFoundError(key)
    if not allowed:
        raise NotebookAccessError(key)
    return secrets[key]
