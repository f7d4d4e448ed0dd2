"""Settings: folders, store and threads, from `MALT_…` environment variables. They change no dataset's content."""

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Folders, store and threads of this machine."""

    model_config = SettingsConfigDict(env_prefix="MALT_", frozen=True, use_attribute_docstrings=True)

    data_dir: Path = Path("data")
    """Folder of the store, datasets, models and evaluations."""
    store_url: str = ""
    """SQLAlchemy URL of the completion store; empty: `store.db` in `data_dir`."""
    store_patience_s: float = 120.0
    """Seconds that a run waits for a store that becomes unusable: its database restarts, the disk is full."""
    embedded_threads: int = Field(0, ge=0)
    """Threads of the embedded model; 0: one for each core that this process may use."""

    @property
    def store(self) -> str:
        return self.store_url or f"sqlite:///{self.data_dir.resolve() / 'store.db'}"

    @property
    def datasets_dir(self) -> Path:
        """Folder of dataset versions: `<datasets_dir>/<name>/v<N>/`."""
        return self.data_dir / "datasets"

    @property
    def models_dir(self) -> Path:
        """Folder of model versions: `<models_dir>/<name>/v<N>/`."""
        return self.data_dir / "models"

    @property
    def evaluations_dir(self) -> Path:
        """Folder of evaluation versions: `<evaluations_dir>/<name>/v<N>/`."""
        return self.data_dir / "evaluations"

    @property
    def training_dir(self) -> Path:
        """Folder of checkpoints and unpacked base models; all of it can be made again."""
        return self.data_dir / "training"
