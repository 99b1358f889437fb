"""Lists everything that can be run, or runs it.

python -m experiments                 lists systems, evaluations and data sets
python -m experiments NAME --flags    runs one of them
python -m experiments NAME --help     explains it and its flags
"""

import ast
import importlib
import pathlib
import sys

ROOMS = {
    "systems": "Systems to train",
    "sweeps": "Many runs at once",
    "evaluations": "Evaluations of a trained model",
    "datasets": "Data sets to prepare",
}


def list_room(room: str) -> dict[str, str]:
    """Name and first line of every module of a room that has a `main` function."""
    found = {}
    for path in sorted((pathlib.Path(__file__).parent / room).glob("*.py")):
        tree = ast.parse(path.read_text())
        functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
        if "main" in functions:
            found[path.stem] = (ast.get_docstring(tree) or "").splitlines()[0]
    return found


def list_experiments() -> dict[str, str]:
    """Name and first line of every system."""
    return list_room("systems")


def print_list() -> None:
    """Prints one line for everything that can be run, room by room."""
    lists = {room: list_room(room) for room in ROOMS}
    width = max(len(name) for modules in lists.values() for name in modules)
    for room, modules in lists.items():
        print(f"{ROOMS[room]} (experiments/{room}):\n")
        for name, line in modules.items():
            print(f"  {name:<{width}}  {line}")
        print()
    print("python -m experiments NAME --flags runs one; --help explains it.")


def main(arguments: list[str]) -> None:
    """Runs the module that the first argument names, with the other arguments."""
    if not arguments or arguments[0] in ("-h", "--help"):
        print_list()
        return
    name, *flags = arguments
    rooms = [room for room in ROOMS if name in list_room(room)]
    if not rooms:
        message = f"error: there is no {name!r}; `python -m experiments` lists all"
        print(message, file=sys.stderr)
        raise SystemExit(2)
    from experiments.cli import command_line

    module = importlib.import_module(f"experiments.{rooms[0]}.{name}")
    command_line(module.main, module.Config, flags)


if __name__ == "__main__":
    main(sys.argv[1:])
