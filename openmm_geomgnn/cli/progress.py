"""Progress bars with an estimate of the time that is left."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console()


def echo(text: str) -> None:
    """Print one line as it is."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def bar(description: str, unit: str = "ps") -> Iterator[Callable[..., None]]:
    """Yield update(done, total, note=""), which moves one progress bar; a bar that moved stays when the block ends.

    If the output is not a terminal (a log file, a queueing system), one line is printed for each tenth of the work.
    """
    if console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(f"{description:<22}", total=None, count="", note="")

            def move(done: float, total: float, note: str = "") -> None:
                progress.update(task, completed=done, total=total, count=f"{done:.0f}/{total:.0f} {unit}", note=note)

            yield move
            if not progress.tasks[0].total:
                progress.remove_task(task)  # there was nothing to do
        return
    printed = -1

    def update(done: float, total: float, note: str = "") -> None:
        nonlocal printed
        tenth = int(10 * done / total) if total else 0
        if tenth > printed:
            printed = tenth
            console.print(f"{description}: {done:.0f}/{total:.0f} {unit} {note}".rstrip())

    yield update


@contextmanager
def progress_bars(stages: Mapping[str, tuple[str, str]]) -> Iterator[Callable[[str, int, int], None]]:
    """Yield progress(stage, done, total), which moves one bar after the other, one for each stage.

    stages: {stage: (description, unit)}.
    """
    with ExitStack() as stack:
        updates = {}

        def progress(stage: str, done: float, total: float) -> None:
            if stage not in updates:
                stack.close()  # the bar of the stage before is finished
                updates[stage] = stack.enter_context(bar(*stages[stage]))
            updates[stage](done, total)

        yield progress
