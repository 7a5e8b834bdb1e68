"""The NetworkConfig of a daemon, from its file."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from podlane.errors import ConfigError
from podlane.model import config as configs
from podlane.model.config import NetworkConfig
from podlane.model.flannel import with_net_conf

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
    config = configs.parse(document if document is not None else {}, f"config {path}")
    return _with_net_conf(config, f"config {path}")


def _with_net_conf(config: NetworkConfig, where: str) -> NetworkConfig:
    """What Flannel's own configuration decides (flannel.netConf), if it is to."""
    path = config.flannel.net_conf
    if not path or not config.backend.flannel_compat:
        return config
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: flannel.netConf: {error}") from None
    return configs.validate(with_net_conf(config, text, f"{where}: flannel.netConf {path}"), where)
