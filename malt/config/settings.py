"""Where a run lives: read from `MALT_…` environment variables. Nothing here changes what a dataset contains."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Where to run."""

    model_config = SettingsConfigDict(env_prefix="MALT_", frozen=True, use_attribute_docstrings=True)

    data_dir: Path = Path("data")
    """Folder of the store and the datasets."""
    store_url: str = ""
    """SQLAlchemy URL of the completion store; empty: `store.db` in `data_dir`."""
    store_patience_s: float = 120.0
    """Seconds that a run waits for a store that was there and then cannot be used: a restart, a full disk."""
    embedded_threads: int = Field(0, ge=0)
    """Threads that the embedded model computes with; 0: one for each core that this process may use."""

    @property
    def store(self) -> str:
        return self.store_url or f"sqlite:///{self.data_dir.resolve() / 'store.db'}"

    @property
    def datasets_dir(self) -> Path:
        """Where dataset versions are kept: `<datasets_dir>/<name>/v<N>/`."""
        return self.data_dir / "datasets"

    @property
    def models_dir(self) -> Path:
        """Where model versions are kept: `<models_dir>/<name>/v<N>/`."""
        return self.data_dir / "models"

    @property
    def evaluations_dir(self) -> Path:
        """Where evaluation versions are kept: `<evaluations_dir>/<name>/v<N>/`."""
        return self.data_dir / "evaluations"

    @property
    def training_dir(self) -> Path:
        """Where training keeps checkpoints and unpacked base models: nothing that cannot be made again."""
        return self.data_dir / "training"
