"""Lists the experiments: `python -m experiments`."""

import ast
import pathlib


def list_experiments() -> dict[str, str]:
    """Name and first line of every module here that has `main(config)`."""
    found = {}
    for path in sorted(pathlib.Path(__file__).parent.glob("*.py")):
        tree = ast.parse(path.read_text())
        functions = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
        if any(f.name == "main" and f.args.args[:1] for f in functions):
            found[path.stem] = (ast.get_docstring(tree) or "").splitlines()[0]
    return found


if __name__ == "__main__":
    experiments = list_experiments()
    width = max(map(len, experiments))
    for name, line in experiments.items():
        print(f"python -m experiments.{name:<{width}}  {line}")
