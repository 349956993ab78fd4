"""Packages of other people, installed in a folder as pip would install them."""


def install(folder, name, groups, modules=()):
    """Write a distribution of version 1.0 into a folder, which is then to be put on the path of Python.

    groups: {group: {name: "module:object"}}, its entry points. modules: {name: source}.
    """
    information = folder / f"{name.replace('-', '_')}-1.0.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [
        line
        for group, entries in groups.items()
        for line in (f"[{group}]", *(f"{key} = {value}" for key, value in entries.items()))
    ]
    (information / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for module, source in dict(modules).items():
        (folder / f"{module}.py").write_text(source)
