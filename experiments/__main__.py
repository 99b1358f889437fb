"""Lists the experiments, and what can be done with their runs: `python -m experiments`."""

import ast
import pathlib


def list_experiments() -> dict[str, str]:
    """Name and first line of every module here that has `main(config)`."""
    return _modules_with("main")


def list_commands() -> dict[str, str]:
    """Name and first line of every module here that has `command(config)`."""
    return _modules_with("command")


def _modules_with(function: str) -> dict[str, str]:
    found = {}
    for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text())
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        if any(f.name == function and f.args.args[:1] for f in functions):
            found[path.stem] = (ast.get_docstring(tree) or "").splitlines()[0]
    return found


if __name__ == "__main__":
    lists = {
        "Experiments": list_experiments(),
        "What a run has learnt, put to use": list_commands(),
    }
    width = max(len(name) for modules in lists.values() for name in modules)
    for title, modules in lists.items():
        print(f"{title}:\n")
        for name, line in modules.items():
            print(f"python -m experiments.{name:<{width}}  {line}")
        print()
