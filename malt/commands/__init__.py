"""The commands of `malt`, by what they are about. Each imports what it needs when it runs: `malt --help` needs none."""
