"""The NetworkConfig of a daemon, from its file."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from podlane.errors import ConfigError
from podlane.model import config as configs
from podlane.model.config import NetworkConfig

CONFIG_PATH: Final = "/etc/podlane/config.yaml"


def read(path: str, default_path: str = CONFIG_PATH) -> NetworkConfig:
    """The default configuration when the default path has no file. Raises ConfigError."""
    try:
        text = Path(path).read_text()
    except FileNotFoundError:
        if path == default_path:
            return configs.DEFAULT
        raise ConfigError(f"config {path}: there is no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config {path}: {error}") from None
    import yaml

    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"config {path}: not YAML: {' '.join(str(error).split())}") from None
    return configs.parse(document if document is not None else {}, f"config {path}")
