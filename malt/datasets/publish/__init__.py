"""Writing an immutable version from shards; removing versions and unused store rows."""
