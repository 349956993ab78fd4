"""The code blocks of the documentation's pages, and how each kind is run."""

import ast
import doctest
import importlib
import os
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

FENCE = re.compile(r"^(?P<indent>[ \t]*)(?P<ticks>`{3,})(?P<info>.*)$")
COMMENT = re.compile(r"^[ \t]*<!--(?P<text>.*?)-->[ \t]*$", re.DOTALL)
LANGUAGES = {"python", "bash", "console", "yaml", "text", ""}
DIRECTIVES_WITH_CODE = {"code-block": 1, "code": 1}
LONGEST_COMMAND = 120  # s
KEYS = {"skip", "file", "settings", "raises"}


@dataclass
class Block:
    """A code block: its language, its text, the line it begins in, and what the comment before it says."""

    language: str
    text: str
    line: int
    marks: dict[str, str] = field(default_factory=dict)


def blocks(text):
    """The blocks of a page in order, with those hidden in comments.

    Raises ValueError for a language or a mark that nobody runs.
    """
    lines, found, marks, i = text.splitlines(), [], {}, 0
    while i < len(lines):
        line = lines[i]
        fence = FENCE.match(line)
        if fence:
            end = _end(lines, i, rf"^[ \t]*{fence['ticks']}`*[ \t]*$")
            language = _language(fence["info"], i + 1)
            if language is not None:
                body = [one.removeprefix(fence["indent"]) for one in lines[i + 1 : end]]
                while body and re.match(r":[\w-]+:", body[0]) and fence["info"].startswith("{"):
                    body[0] = ""  # options of a directive
                found.append(Block(language, "\n".join(body) + "\n", i + 2, marks))
            marks, i = {}, end + 1
        elif line.lstrip().startswith("<!--"):
            end = next(k for k in range(i, len(lines)) if "-->" in lines[k])
            comment = COMMENT.match("\n".join(lines[i : end + 1]))["text"]
            head, newline, body = comment.partition("\n")
            if newline and head.strip() in ("python", "bash"):
                found.append(Block(head.strip(), body + "\n", i + 2))
            else:
                marks = _marks(comment, i + 1)
            i = end + 1
        else:
            marks = marks if not line.strip() else {}
            i += 1
    return found


def _end(lines, start, pattern):
    return next((k for k in range(start + 1, len(lines)) if re.match(pattern, lines[k])), len(lines))


def _language(info, line):
    """The language of a fence; None for a directive that holds no code for this test."""
    info = info.strip()
    directive = re.match(r"\{([\w-]+)\}\s*(\w*)", info)
    if directive:
        return directive[2] if directive[1] in DIRECTIVES_WITH_CODE else None
    language = info.split()[0] if info else ""
    if language not in LANGUAGES:
        raise ValueError(f"line {line}: a block in {language!r} is run by nobody; known: {', '.join(sorted(LANGUAGES))}")
    return language


def _marks(comment, line):
    """{key: value} of a comment such as `skip: needs a GPU` or `file: fit.yaml; settings: fit`."""
    parts = [part.partition(":") for part in comment.split(";")]
    if parts[0][0].strip() not in KEYS:
        return {}  # a remark
    marks = {key.strip(): value.strip() for key, _, value in parts}
    if not marks.keys() <= KEYS or not all(marks.values()):
        raise ValueError(f"line {line}: {comment.strip()!r} is no mark of a code block; known: {', '.join(sorted(KEYS))}")
    return marks


class Reader:
    """Runs the blocks of one page, in order, in the current folder."""

    def __init__(self, page, environment):
        self.page, self.environment = page, environment
        self.namespace = {"__name__": "__page__"}

    def run(self, block):
        """Run a block, or, where it is to be skipped, check what can be checked without running it."""
        if "file" in block.marks:
            path = Path(block.marks["file"])
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text, encoding="utf-8")
        check = {"python": self._python, "bash": self._bash, "console": self._console, "yaml": self._yaml}
        check.get(block.language, lambda block: None)(block)

    # ------------------------------------------------------------------------------------------------------------ Python

    def _python(self, block):
        code = "\n" * (block.line - 1) + block.text  # so that a traceback has the line in the page
        if "skip" in block.marks:
            check_python(code, str(self.page))
        elif ">>>" in block.text:
            self._doctest(block)
        elif "raises" in block.marks:
            try:
                exec(compile(code, str(self.page), "exec"), self.namespace)
            except Exception as error:
                assert type(error).__name__ == block.marks["raises"], repr(error)
            else:
                raise AssertionError(f"no {block.marks['raises']} was raised")
        elif "file" not in block.marks:
            exec(compile(code, str(self.page), "exec"), self.namespace)

    def _doctest(self, block):
        options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        test = doctest.DocTestParser().get_doctest(
            block.text, self.namespace, str(self.page), str(self.page), block.line - 1
        )
        runner, output = doctest.DocTestRunner(optionflags=options), []
        runner.run(test, out=output.append, clear_globs=False)
        self.namespace.update(test.globs)
        assert not runner.failures, "".join(output)

    # ------------------------------------------------------------------------------------------------------------- shell

    def _bash(self, block):
        if "skip" in block.marks:
            for command in geomgnn_commands(block.text):
                check_command(command)
        elif "file" not in block.marks:
            self._shell(block.text, fails="raises" in block.marks)

    def _console(self, block):
        commands = [line[2:] for line in block.text.splitlines() if line.startswith("$ ")]
        if "skip" in block.marks:
            for command in geomgnn_commands("\n".join(commands)):
                check_command(command)
            return
        output = self._shell("\n".join(commands), fails="raises" in block.marks)
        wanted = "\n".join(line for line in block.text.splitlines() if not line.startswith("$ "))
        checker, options = doctest.OutputChecker(), doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        assert checker.check_output(wanted, output, options), f"shown:\n{wanted}\nprinted:\n{output}"

    def _shell(self, commands, fails=False):
        process = subprocess.Popen(
            ["bash", "-euo", "pipefail", "-c", commands],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(timeout=LONGEST_COMMAND)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise AssertionError(f"{commands}\ntakes longer than {LONGEST_COMMAND} s: skip it, or make it shorter") from None
        assert (process.returncode != 0) is fails, f"{commands}\n{output}"
        return output

    # -------------------------------------------------------------------------------------------------------------- YAML

    def _yaml(self, block):
        kind = block.marks.get("settings", None if "file" in block.marks else "run")
        if kind is None or "skip" in block.marks:
            import yaml

            assert isinstance(yaml.safe_load(block.text), dict)
        else:
            from doc_settings import check_settings

            check_settings(kind, block.text, whole=block.marks.get("file"))


def check_python(code, name):
    """Compile Python that is not run, and make its imports: what is imported has to be there."""
    for node in ast.walk(ast.parse(code, name)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if not hasattr(module, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")


def geomgnn_commands(text):
    """The arguments of every line that begins with `geomgnn`."""
    lines = text.replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.split()[:1] == ["geomgnn"]]


def check_command(arguments):
    """Parse a command line of `geomgnn` without running it; an unknown command or option is an error."""
    import typer

    from openmm_geomgnn.cli.main import app

    command, context = typer.main.get_command(app), None
    while hasattr(command, "commands"):
        context = command.make_context("geomgnn", [arguments[0]], parent=context, resilient_parsing=True)
        command, arguments = command.commands[arguments[0]], arguments[1:]
    command.make_context("geomgnn", list(arguments), parent=context)


def environment(repository):
    """The environment of the shell: the commands of this Python on the PATH, this source tree, one thread."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {**os.environ, "PATH": path, "PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
