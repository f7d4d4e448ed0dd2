"""The command that puts a version where others read it: `push`."""

import click

from malt.cli.options import takes_json, takes_version


@click.command()
@takes_version
@click.argument("dest", metavar="DEST")
@click.option("--public", is_flag=True, help="Let anyone read it: a repository on the Hub is private otherwise.")
@takes_json
def push(version: str, dest: str, public: bool, as_json: bool) -> None:
    """Put a version where others read it, and check it there.

    DEST is hf://datasets/OWNER/NAME, s3://bucket/prefix, any URL that fsspec knows, or a folder. Only what is missing
    is sent, and nothing that is there is overwritten. On the Hub it becomes one commit and a tag; elsewhere it lands in
    DEST/<name>/v<N>/. Credentials come from the environment.
    """
    from malt.cli.console import sending, terminal
    from malt.datasets.push.push import push as pushed
    from malt.datasets.version.dataset_version import open_version

    done = pushed(open_version(version), dest, public=public)
    terminal.emit(done.model_dump(mode="json")) if as_json else sending.show_pushed(done)
